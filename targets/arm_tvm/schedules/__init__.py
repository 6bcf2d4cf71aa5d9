"""Kernel families, one file each. A family is a module with three functions:

choices(workload, machine) -> tuple[Choice, ...]: ways to compute it, best predicted first; none where it declines;
pack(workload, choice, weights, machine) -> array: weights (filters, channels / groups, rows, columns) as `emit` has it;
emit(workload, choice, machine) -> PrimFunc of (source, packed weights, bias in whole blocks[, residual], result).
"""
