"""Autoregressive decoding: sequences are batched, prefilled, stepped, and their codes drawn.

A step runs in ONNX Runtime or in compiled kernels behind one interface (`transformer`); `batcher` advances all rows.
Arrays in, arrays out: no engine, no text, no audio.
"""
