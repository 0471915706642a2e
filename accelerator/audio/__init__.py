"""Sound at the edges: recordings in, files out, the check on what an engine answered, and how segments are joined.

A leaf. Samples are float32 mono in [-1, 1] everywhere inside the package.
"""
