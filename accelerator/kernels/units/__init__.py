"""What is compiled together, one file a unit: it names the kernels, and imports them when they are compiled.

A unit's machine code is found by the sources that its file imports, at any depth: an edit recompiles no other unit. So
nothing is imported here, and who runs a kernel imports its unit alone.
"""
