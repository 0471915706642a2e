"""What may be asked to be said: characters checked, stretches that a voice cannot read, segments.

A leaf: it knows of no engine but what is handed in.
"""
