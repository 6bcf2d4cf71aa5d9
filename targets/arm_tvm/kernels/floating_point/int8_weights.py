"""Weights that lie in memory as int8 and are computed with in floating point: widened in registers, vector by vector.

A filter's weights have one factor, which multiplies its sum: w · x = factor · Σ q · x. So products are those of the
integers, which a float32 holds exactly. Instructions for 16 weights in float32: one load, 6 that widen to int32, 4 that
convert: 11, against 2 paired loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, cast, load, shuffle, store, vector_type

INT8 = "int8"
LOADED = 16
"""Weights of one load: a NEON register of them."""
WIDENING = {"float32": 11 / 16}
"""Instructions per weight."""
PANEL_COST = 3.75 / 4
"""Instructions per weight to widen it and to store it: two loads at a time, and the loop around them."""


def widened(emitter: Emitter, weights: Any, at: Any, *, vectors: int, lanes: int, dtype: str) -> Iterator[Any]:
    """Neighbouring vectors of int8 as floating point; the code of a load is written when its first vector is asked for.

    Args:
        emitter: Takes the code.
        weights: The buffer of int8.
        at: Offset of the first.
        vectors: How many.
        lanes: Elements of one.
        dtype: What they become.
    """
    each = max(1, LOADED // lanes)
    for first in range(0, vectors, each):
        count = min(each, vectors - first)
        loaded = load(weights, at + first * lanes, count * lanes)
        wide = emitter.let(cast(vector_type(dtype, count * lanes), cast(vector_type("int32", count * lanes), loaded)))
        for part in range(count):
            yield emitter.let(shuffle([wide], range(part * lanes, (part + 1) * lanes))) if count > 1 else wide


def widened_panel(emitter: Emitter, weights: Any, at: Any, *, vectors: int, lanes: int, dtype: str) -> Any:
    """A buffer of neighbouring vectors of int8 as floating point, for kernels that read them once per tile of results.

    Args:
        emitter: Takes the code.
        weights: The buffer of int8.
        at: Offset of the first.
        vectors: How many.
        lanes: Elements of one.
        dtype: What they become.
    """
    panel = emitter.allocate(vectors * lanes, dtype, "global")
    each = 2 * max(1, LOADED // lanes)
    for first, steps, count in ((0, vectors // each, each), (vectors - vectors % each, 1, vectors % each)):
        with emitter.loop(steps if count else 0) as step:
            place = emitter.let(step * (each * lanes) + first * lanes)
            for index, vector in enumerate(
                widened(emitter, weights, at + place, vectors=count, lanes=lanes, dtype=dtype)
            ):
                emitter.add(store(panel, place + index * lanes, vector, lanes))
    return panel
