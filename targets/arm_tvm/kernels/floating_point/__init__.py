"""Kernels of floating-point numbers, one family a file. A family that can be tuned is a module with three functions:

choices(workload, machine) -> tuple[Choice, ...]: ways to compute it, best predicted first; none where it declines;
    each with the bytes that its packed weights take;
pack(workload, choice, weights, machine) -> array: weights (filters, channels / groups, rows, columns) as `emit` has it;
emit(workload, choice, machine) -> PrimFunc of (source, packed weights, bias in whole blocks[, residual], result).

`rows` and `matmul` have one way to compute what they are asked for: `emit_…(what, machine) -> PrimFunc`.
"""
