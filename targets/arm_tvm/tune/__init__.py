"""Kernels that can be computed in several ways: which ways there are, and what measures each on a machine."""
