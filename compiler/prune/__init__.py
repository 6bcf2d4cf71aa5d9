"""Channel pruning on the ONNX graph: what is tied together, what it is worth, how it is cut, how it is repaired."""
