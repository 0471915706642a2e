"""ONNX graph building: arrays in, model out. Nothing here knows an engine, a cache or a session."""
