"""The text of a request: checked characters, stretches that a voice cannot read, segments.

It imports no other folder, and knows about an engine only what is passed in.
"""
