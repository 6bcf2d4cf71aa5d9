"""Kernels that can be computed in several ways, and what measures each: this machine, QEMU, or a board by RPC."""
