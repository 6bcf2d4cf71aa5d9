"""Bundles executed on this machine, directly or under QEMU: results, times, instruction counts, memory."""
