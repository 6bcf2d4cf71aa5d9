"""Integer depthwise convolution: each channel with its own window.

Tiling: 16 channels × up to 4 pixels of int32 stay in registers. Two taps are multiplied and added in int16 (smull,
smlal: exact, because no weight is −128; where one is, tap by tap), then widened (saddw, saddw2).
Roofline: 4 multiplications and 4 additions per 32 products; 16-byte loads of input, one per tap and pixel.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.kernels.emitter import (
    Emitter,
    broadcast,
    cast,
    load,
    shuffle,
    store,
)
from targets.arm_tvm.kernels.integer.requantize import read_residual, scaled, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot
from targets.arm_tvm.kernels.integer.tiles import split
from targets.arm_tvm.kernels.integer.windows import Row, each_row

PIXELS = 4
"""Pixels of a tile, at most: their 16 channels of int32 take 16 of the 32 registers."""


def emit_depthwise(spec: ConvSpec, dot: Dot) -> Any:
    """The kernel: (source, weights, scale, bias[, residual], result), all flat."""
    emitter, channels = Emitter(), spec.result.blocks * BLOCK
    source = emitter.parameter((spec.source.elements,), "int8", "x")
    weights = emitter.parameter((channels * spec.kernel[0] * spec.kernel[1],), "int8", "w")
    factors = [emitter.parameter((channels,), "float32", name) for name in ("scale", "bias")]
    size, adds = spec.result.elements, spec.epilogue.residual_scale is not None
    residual = emitter.parameter((size,), "int8", "residual") if adds else None
    result = emitter.parameter((size,), "int8" if spec.epilogue.quantized else "float32", "y")
    work = spec.result.elements // BLOCK * spec.kernel[0] * spec.kernel[1] * 8
    with each_row(emitter, spec, source, work=work) as row:
        for first, parts, columns in split(spec.result.width, PIXELS):
            with emitter.loop(parts) as at:
                column = at * columns + first
                sums = _sums(emitter, spec, (row, row.start + column * (spec.strides[1] * BLOCK)), weights, columns)
                held = [[load(factor, row.block * BLOCK + 4 * part, 4) for part in range(4)] for factor in factors]
                for pixel, total in enumerate(sums):
                    offset = row.into + (column + pixel) * BLOCK
                    added = read_residual(residual, offset, BLOCK)[0] if residual is not None else None
                    quads = [shuffle([total], range(4 * part, 4 * part + 4)) for part in range(4)]
                    values = scaled(quads, held[0], held[1], added, spec.epilogue)
                    write(emitter, values, (result, offset), spec.epilogue, dot)
    return emitter.function()


def _sums(emitter: Emitter, spec: ConvSpec, place: tuple[Row, Any], weights: Any, pixels: int) -> list[Any]:
    """Sums of neighbouring pixels whose first window begins at an offset."""
    row, begin = place
    taps = [(y, x) for y in range(spec.kernel[0]) for x in range(spec.kernel[1])]
    sums = emitter.allocate(pixels * BLOCK, "int32", "global")
    for pixel in range(pixels):
        emitter.add(store(sums, pixel * BLOCK, broadcast(0, BLOCK, "int32"), BLOCK))
    # Two products fit int16 unless a weight is −128 (see `products`).
    together = 1 if spec.wide else 2
    for first in range(0, len(taps), together):
        chosen = list(enumerate(taps))[first : first + together]
        held = [
            emitter.let(load(weights, row.block * (len(taps) * BLOCK) + index * BLOCK, BLOCK)) for index, _ in chosen
        ]
        for pixel in range(pixels):
            product = None
            for weight, (_, (y, x)) in zip(held, chosen, strict=True):
                distance = y * spec.dilations[0] * row.image.row_stride
                distance += (x * spec.dilations[1] + pixel * spec.strides[1]) * BLOCK
                value = load(row.source, begin + distance, BLOCK)
                term = cast("int16x16", value) * cast("int16x16", weight)
                product = term if product is None else product + term
            total = load(sums, pixel * BLOCK, BLOCK) + cast("int32x16", product)
            emitter.add(store(sums, pixel * BLOCK, total, BLOCK))
    return [load(sums, pixel * BLOCK, BLOCK) for pixel in range(pixels)]
