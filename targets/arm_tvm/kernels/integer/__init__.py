"""Integer arithmetic: Q/DQ ONNX → kernels that take int8, accumulate in int32 and requantize in registers."""
