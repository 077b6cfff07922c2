"""The network in forms that run without this project: ONNX, and plain weights."""
