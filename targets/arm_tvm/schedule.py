"""The one schedule there is: spread the outer loops of every kernel worth it over the threads."""

from __future__ import annotations

from typing import Any

MIN_ITERATIONS = 16384
"""A kernel with fewer innermost iterations ends before other threads have started on it."""


def parallelize(module: Any) -> Any:
    """The Relax module with the leading data-parallel loops of its large kernels fused and marked parallel."""
    import tvm

    scheduled = tvm.IRModule(module.functions, attrs=module.attrs)
    for variable, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and "fleetc.kernel" not in (function.attrs or {}):
            scheduled[variable] = _parallel_kernel(function)
    return scheduled


def _parallel_kernel(function: Any) -> Any:
    from tvm import s_tir
    from tvm.s_tir.dlight.analysis import normalize_prim_func

    schedule = s_tir.Schedule(function)
    blocks = normalize_prim_func(schedule)
    if blocks is None:  # not made of plain loops: sorting, scatter
        return function
    for block in blocks:
        outer = _outer_loops(block.iters)
        if _iterations(outer) > 1 and _iterations(block.iters) >= MIN_ITERATIONS:
            loops = [iteration.loop_rv for iteration in outer]
            schedule.parallel(schedule.fuse(*loops) if len(loops) > 1 else loops[0])
    return schedule.mod["main"].with_attrs(dict(function.attrs.items()))


def _outer_loops(iters: Any) -> list[Any]:
    """Data-parallel loops before the first other one, less the last where there are several: it is left to SIMD."""
    spatial: list[Any] = []
    for iteration in iters:
        if iteration.kind != "S":
            break
        spatial.append(iteration)
    return spatial[:-1] or spatial


def _iterations(iters: Any) -> int:
    total = 1
    for iteration in iters:
        total *= int(iteration.dom)
    return total
