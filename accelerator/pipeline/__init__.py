"""One request from start to end: its checks, its segments, the parts' fallback, the stream that leaves.

`selection` decides what a part runs in, `tuning` keeps it; the original engine is the last resort of `dispatch`.
Nothing in here may know an engine, a backend's inside, or a file format.
"""
