"""Layers of codecs and vocoders rewritten in PyTorch so that they go on where a window ended.

`convolutions` says how each product is computed; engines put layers together in `rewrite` files of their own.
State is an argument and a result; nothing in here is exported or knows an engine.
"""
