"""One request from start to end: its checks, its segments, the fallback of parts, the stream of audio.

`selection` decides which backend a part runs on, and `tuning` keeps the decision; `dispatch` turns to the original
engine as a last resort. Nothing in here may know an engine, the inside of a backend, or a file format.
"""
