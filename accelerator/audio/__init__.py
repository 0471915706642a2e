"""Audio at the edges: reading recordings, writing files, checking an engine's audio, joining segments.

Samples are float32 mono in [-1, 1] everywhere inside the package.
"""
