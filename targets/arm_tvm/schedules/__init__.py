"""Kernel families, one file each. A family is a module with three functions:

choices(workload, machine) -> tuple[Choice, ...]: ways to compute it, best predicted first; none where it declines;
pack(workload, choice, weights, machine) -> array: the weights (filters, channels / groups, rows, columns) as `emit` reads them;
emit(workload, choice, machine) -> PrimFunc of (source, packed weights, bias padded to whole blocks[, residual], result).
"""
