"""Integer depthwise convolution: each channel with its own window.

Tiling: 16 channels × up to 4 pixels of int32 stay in registers. Two taps are multiplied and added in int16 (smull,
smlal: exact, because no weight is −128; where one is, tap by tap), then widened (saddw, saddw2). On x86 vpdpbusd takes
four neighbouring taps of 16 channels, which are one load of 64 bytes and a permutation.
Roofline: 4 multiplications and 4 additions per 32 products; 16-byte loads of input, one per tap and pixel. On x86 one
permutation and one product per 64 products, or the 48 that a window of 3 columns has.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.kernels.emitter import (
    Emitter,
    broadcast,
    cast,
    intrinsic,
    load,
    shuffle,
    store,
)
from targets.arm_tvm.kernels.integer.products import PRODUCT_NAMES
from targets.arm_tvm.kernels.integer.requantize import read_residual, scaled, split_sums, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot
from targets.arm_tvm.kernels.integer.tiles import split
from targets.arm_tvm.kernels.integer.vectors import vectors_of
from targets.arm_tvm.kernels.integer.windows import Row, each_row

PIXELS = 4
"""Pixels of a tile, at most: their 16 channels of int32 take 16 of the 32 registers."""
FOUR = 4
"""Products that vpdpbusd adds up in one lane."""


def four_taps(spec: ConvSpec) -> int:
    """Fours of taps in a row of the window; the last is filled up with weights of zero."""
    return -(-spec.kernel[1] // FOUR)


def _reach(spec: ConvSpec) -> tuple[int, int]:
    """Rows and columns of the input that are read: all of each four of neighbouring taps."""
    rows, columns = spec.extent
    if spec.dilations[1] != 1:
        return rows, columns
    return rows, columns + FOUR * four_taps(spec) - spec.kernel[1]


def emit_depthwise(spec: ConvSpec, dot: Dot) -> Any:
    """The kernel: (source, weights, scale, bias[, start][, residual], result), all flat."""
    emitter, channels, vectors = Emitter(), spec.result.blocks * BLOCK, vectors_of(dot)
    source = emitter.parameter((spec.source.elements,), vectors.stored, "x")
    columns = spec.kernel[1] if vectors.by_lane else FOUR * four_taps(spec)
    weights = emitter.parameter((channels * spec.kernel[0] * columns,), "int8", "w")
    factors = [emitter.parameter((channels,), "float32", name) for name in ("scale", "bias")]
    start = emitter.parameter((channels,), "int32", "start") if vectors.moved else None
    size, adds = spec.result.elements, spec.epilogue.residual_scale is not None
    residual = emitter.parameter((size,), vectors.stored, "residual") if adds else None
    result = emitter.parameter((size,), vectors.stored if spec.epilogue.quantized else "float32", "y")
    work = spec.result.elements // BLOCK * spec.kernel[0] * spec.kernel[1] * 8
    reach = None if vectors.by_lane else _reach(spec)
    with each_row(emitter, spec, source, dot, work=work, reach=reach) as row:
        for first, parts, columns in split(spec.result.width, PIXELS):
            with emitter.loop(parts) as at:
                column = at * columns + first
                place = row, row.start + column * (spec.strides[1] * BLOCK)
                if start is None:
                    sums = [split_sums(total, 4) for total in _sums(emitter, spec, place, weights, columns)]
                else:
                    sums = _sums_of_fours(emitter, spec, place, (weights, start, dot), columns)
                first_channels = [row.block * BLOCK + at for at in range(0, BLOCK, vectors.lanes)]
                held = [[load(factor, channel, vectors.lanes) for channel in first_channels] for factor in factors]
                for pixel, totals in enumerate(sums):
                    offset = row.into + (column + pixel) * BLOCK
                    added = read_residual(residual, offset, BLOCK, dot) if residual is not None else None
                    values = scaled(totals, held[0], held[1], added, spec.epilogue)
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


def _sums_of_fours(
    emitter: Emitter, spec: ConvSpec, place: tuple[Row, Any], factors: tuple[Any, Any, Dot], pixels: int
) -> list[list[Any]]:
    """The same in vectors of as many sums as a register has, four taps of a row at a time."""
    (row, begin), (weights, start, dot) = place, factors
    lanes, taps = vectors_of(dot).lanes, four_taps(spec)
    parts = range(BLOCK // lanes)
    first = [emitter.let(load(start, row.block * BLOCK + part * lanes, lanes)) for part in parts]
    sums = [list(first) for _ in range(pixels)]
    for index in range(spec.kernel[0] * taps):
        y, four = divmod(index, taps)
        at = (row.block * (spec.kernel[0] * taps) + index) * (FOUR * BLOCK)
        held = [emitter.let(load(weights, at + part * FOUR * lanes, FOUR * lanes)) for part in parts]
        for pixel in range(pixels):
            distance = y * spec.dilations[0] * row.image.row_stride + pixel * spec.strides[1] * BLOCK
            inputs = _four_taps(emitter, spec, (row.source, begin + distance), four)
            for part in parts:
                # Of each channel its four taps.
                chosen = [BLOCK * tap + lanes * part + channel for channel in range(lanes) for tap in range(FOUR)]
                sums[pixel][part] = emitter.let(
                    intrinsic(
                        f"int32x{lanes}", PRODUCT_NAMES[dot], sums[pixel][part], shuffle(inputs, chosen), held[part]
                    )
                )
    return sums


def _four_taps(emitter: Emitter, spec: ConvSpec, source: tuple[Any, Any], four: int) -> list[Any]:
    """64 inputs: 16 channels of four taps of a row, in as few vectors as loads."""
    buffer, offset = source
    if spec.dilations[1] == 1:
        return [emitter.let(load(buffer, offset + four * (FOUR * BLOCK), FOUR * BLOCK))]
    # Taps past the last one repeat it: their weights are zero.
    taps = [min(four * FOUR + tap, spec.kernel[1] - 1) for tap in range(FOUR)]
    return [emitter.let(load(buffer, offset + tap * (spec.dilations[1] * BLOCK), BLOCK)) for tap in taps]
