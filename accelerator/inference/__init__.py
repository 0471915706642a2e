"""Autoregressive decoding: sequences are batched, prefilled, stepped, and their codes drawn.

`batcher` advances all rows; what one step of a dual or a causal model is, `stepper` says; it runs in ONNX Runtime or in
compiled kernels behind one interface (`transformer`).
Arrays in, arrays out: no engine, no text, no audio.
"""
