"""Random ONNX graphs, what they are judged by, and how a failure is kept: the parts of `scripts/fuzz_models.py`."""
