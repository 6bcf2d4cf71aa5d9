"""Weights that lie in memory as int8 and are computed with in floating point: widened in registers, vector by vector.

A filter's weights have one factor, which multiplies its sum: w · x = factor · Σ q · x. So products are those of the
integers, which a float32 holds exactly. Instructions for 16 weights in float32: one load, 6 that widen to int32, 4 that
convert: 11, against 2 paired loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, cast, load, shuffle, vector_type

INT8 = "int8"
LOADED = 16
"""Weights of one load: a NEON register of them."""
WIDENING = {"float32": 11 / 16}
"""Instructions per weight."""


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
