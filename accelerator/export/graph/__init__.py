"""Arrays in, an ONNX model out: transformer graphs written node by node, and their quantized weights.

No PyTorch and no engine: weights come as numpy arrays by the names that a specification gives them.
"""
