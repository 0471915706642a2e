"""Autoregressive decoding: sequences are batched, prefilled, stepped, and their codes drawn.

`batcher` advances all rows, `stepper` defines one step of a dual or a causal model, and `transformer` runs it in ONNX
Runtime or in compiled kernels behind one interface.
Arrays in, arrays out: no engine, no text, no audio.
"""
