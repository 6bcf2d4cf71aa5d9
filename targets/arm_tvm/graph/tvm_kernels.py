"""Schedules of TVM's own kernels: vectors where they work on packed values, threads where they are large."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from typing import Any

BLOCKS = (4, 8, 16)
"""Innermost extents that are blocks of channels: the lanes of one vector."""

MIN_ITERATIONS = 16384
"""A kernel with fewer innermost iterations ends before other threads have started on it."""


def parallelize(module: Any) -> Any:
    """The Relax module with the leading data-parallel loops of its large kernels fused and marked parallel."""
    import tvm

    scheduled = tvm.IRModule(module.functions, attrs=module.attrs)
    for variable, function in module.functions_items():
        # Kernels of ours have their vectors and threads already.
        if isinstance(function, tvm.tirx.PrimFunc) and "fleetc.kernel" not in (function.attrs or {}):
            scheduled[variable] = _parallel_kernel(function)
    return scheduled


def _parallel_kernel(function: Any) -> Any:
    from tvm import s_tir
    from tvm.s_tir.dlight.analysis import normalize_prim_func

    schedule = s_tir.Schedule(function)
    if _is_packed(function):
        _vectorize(schedule)
        return schedule.mod["main"].with_attrs(dict(function.attrs.items()))
    blocks = normalize_prim_func(schedule)
    if blocks is None:  # not made of plain loops: sorting, scatter
        return function
    for block in blocks:
        outer = _outer_loops(block.iters)
        if _iterations(outer) > 1 and _iterations(block.iters) >= MIN_ITERATIONS:
            loops = [iteration.loop_rv for iteration in outer]
            schedule.parallel(schedule.fuse(*loops) if len(loops) > 1 else loops[0])
    return schedule.mod["main"].with_attrs(dict(function.attrs.items()))


def _is_packed(function: Any) -> bool:
    """Whether all that the kernel gives and takes are values of five axes in blocks of channels."""
    shapes = [list(getattr(parameter, "shape", ())) for parameter in function.params]
    return bool(shapes) and all(len(shape) == 5 and int(shape[-1]) in BLOCKS for shape in shapes)


def _vectorize(schedule: Any) -> None:
    """Inlines what is computed element by element, and computes a block of channels at once in what remains."""
    from tvm.s_tir.schedule import ScheduleError

    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    # The last block writes the result; the others can be inlined into what reads them.
    for block in blocks[:-1]:
        with suppress(ScheduleError):  # reductions stay
            schedule.compute_inline(block)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        if len(loops) < 5 or int(schedule.get(loops[4]).extent) not in BLOCKS:
            continue
        reduced = loops[5:]
        if reduced:
            schedule.reorder(*reduced, loops[4])
        schedule.vectorize(loops[4])
        if prod(int(schedule.get(loop).extent) for loop in loops) >= MIN_ITERATIONS:
            schedule.parallel(schedule.fuse(*loops[:2]))
        if reduced:
            # Else every iteration would test whether it is the first, which sets the initial value.
            schedule.decompose_reduction(block, reduced[0])


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
