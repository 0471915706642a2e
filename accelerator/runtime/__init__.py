"""ONNX Runtime and OpenVINO behind a narrow interface, and the options that every backend is run with.

Only this folder imports onnxruntime and openvino, after switching off their telemetry.
"""
