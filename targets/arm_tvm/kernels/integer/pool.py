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
    shuffle,
    store,
)
from targets.arm_tvm.kernels.integer.requantize import quarters, scaled, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, Image, PoolSpec
from targets.arm_tvm.kernels.integer.windows import each_row

UNROLLED_TAPS = 16
"""Taps of a window that are written out; a larger window becomes a loop."""


def emit_pool(spec: PoolSpec, dot: Dot) -> Any:
    """The kernel: (source, result), all flat."""
    emitter = Emitter()
    source = emitter.parameter((spec.source.elements,), "int8", "x")
    quantized = spec.epilogue is None or spec.epilogue.quantized
    result = emitter.parameter((spec.result.elements,), "int8" if quantized else "float32", "y")
    work = spec.result.elements // BLOCK * spec.kernel[0] * spec.kernel[1]
    with each_row(emitter, spec, source, work=work) as row, emitter.loop(spec.result.width) as column:
        value = _window(emitter, spec, (row.source, row.start + column * (spec.strides[1] * BLOCK), row.image))
        _finish(emitter, spec, value, (result, row.into + column * BLOCK), dot)
    return emitter.function()


def _window(emitter: Emitter, spec: PoolSpec, source: tuple[Any, Any, Image]) -> Any:
    from tvm import tirx

    dtype, least = ("int8", -128) if spec.maximum else ("int32", 0)
    held = emitter.allocate(BLOCK, dtype, "global")
    emitter.add(store(held, 0, broadcast(least, BLOCK, dtype), BLOCK))
    for offset in _offsets(emitter, spec, source[2]):
        value = load(source[0], source[1] + offset, BLOCK)
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
    if spec.epilogue is None:
        emitter.add(store(*target, value, BLOCK))
        return
    parts = quarters(value) if spec.maximum else [shuffle([value], range(at, at + 4)) for at in range(0, BLOCK, 4)]
    scale, bias = broadcast(spec.scale, 4, "float32"), broadcast(spec.bias, 4, "float32")
    write(emitter, scaled(parts, [scale] * 4, [bias] * 4, None, spec.epilogue), target, spec.epilogue, dot)
