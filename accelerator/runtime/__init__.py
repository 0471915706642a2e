"""ONNX Runtime behind a narrow interface, and the options that every backend is run with.

Only this folder imports onnxruntime, after switching off its telemetry.
"""
