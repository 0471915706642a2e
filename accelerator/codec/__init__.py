"""Layers of codecs and vocoders, rewritten in PyTorch so that a window continues where the last one ended.

`convolutions` chooses how each convolution is computed; engines assemble layers in `rewrite` files of their own.
State is an argument and a result; nothing in here is exported or knows an engine.
"""
