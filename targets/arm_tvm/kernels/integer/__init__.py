"""Kernels of integers: they take int8, accumulate in int32 and requantize in registers."""
