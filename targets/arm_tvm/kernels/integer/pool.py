"""Integer pooling: maxima stay int8, sums are int32 and scaled by one over the window's size with the requantization.

Tiling: 16 channels of one pixel in registers over the whole window. Roofline: one 16-byte load per tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from targets.arm_tvm.kernels.emitter import (
    Emitter,
    broadcast,
    cast,
    load,
    store,
)
from targets.arm_tvm.kernels.integer.requantize import parts, scaled, split_sums, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, Image, PoolSpec
from targets.arm_tvm.kernels.integer.vectors import vectors_of
from targets.arm_tvm.kernels.integer.windows import each_row

UNROLLED_TAPS = 16
"""Taps of a window that are written out; a larger window becomes a loop."""


def emit_pool(spec: PoolSpec, dot: Dot) -> Any:
    """The kernel: (source, result), all flat."""
    emitter = Emitter()
    stored = vectors_of(dot).stored
    source = emitter.parameter((spec.source.elements,), stored, "x")
    quantized = spec.epilogue is None or spec.epilogue.quantized
    result = emitter.parameter((spec.result.elements,), stored if quantized else "float32", "y")
    work = spec.result.elements // BLOCK * spec.kernel[0] * spec.kernel[1]
    with each_row(emitter, spec, source, dot, work=work) as row, emitter.loop(spec.result.width) as column:
        place = row.start + column * (spec.strides[1] * BLOCK)
        value = _window(emitter, spec, (row.source, place, row.image), dot)
        _finish(emitter, spec, value, (result, row.into + column * BLOCK), dot)
    return emitter.function()


def _window(emitter: Emitter, spec: PoolSpec, source: tuple[Any, Any, Image], dot: Dot) -> Any:
    from tvm import tirx

    dtype, least = ("int8", -128) if spec.maximum else ("int32", 0)
    held = emitter.allocate(BLOCK, dtype, "global")
    emitter.add(store(held, 0, broadcast(least, BLOCK, dtype), BLOCK))
    for offset in _offsets(emitter, spec, source[2]):
        value = vectors_of(dot).signed(load(source[0], source[1] + offset, BLOCK))
        before = load(held, 0, BLOCK)
        after = tirx.Max(before, value) if spec.maximum else before + cast("int32x16", cast("int16x16", value))
        emitter.add(store(held, 0, after, BLOCK))
    return load(held, 0, BLOCK)


def _offsets(emitter: Emitter, spec: PoolSpec, image: Image) -> Iterator[Any]:
    """Places of the window's taps; the caller's statements are repeated where they are many."""
    rows, columns = spec.kernel
    if rows * columns <= UNROLLED_TAPS:
        yield from (y * image.row_stride + x * BLOCK for y in range(rows) for x in range(columns))
        return
    with emitter.loop(rows) as y, emitter.loop(columns) as x:
        yield y * image.row_stride + x * BLOCK


def _finish(emitter: Emitter, spec: PoolSpec, value: Any, target: tuple[Any, Any], dot: Dot) -> None:
    vectors = vectors_of(dot)
    if spec.epilogue is None:
        emitter.add(store(*target, vectors.unsigned(value), BLOCK))
        return
    sums = parts(value, vectors.lanes) if spec.maximum else split_sums(value, vectors.lanes)
    scale, bias = (broadcast(factor, vectors.lanes, "float32") for factor in (spec.scale, spec.bias))
    values = scaled(sums, [scale] * len(sums), [bias] * len(sums), None, spec.epilogue)
    write(emitter, values, target, spec.epilogue, dot)
