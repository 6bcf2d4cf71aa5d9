"""The one graph type: ONNX read, checked, bound, run, compared and saved."""
