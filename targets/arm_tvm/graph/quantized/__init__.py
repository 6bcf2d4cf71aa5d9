"""Q/DQ ONNX models: which nodes the integer kernels compute, and the model with those kernels in their place."""
