"""ONNX Runtime behind a narrow door, and the options that any backend is run with.

Only this room imports onnxruntime, whose telemetry it switches off before.
"""
