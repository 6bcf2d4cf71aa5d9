"""Integer depthwise convolution: each channel with its own window.

Tiling: 16 channels × up to 4 pixels of int32 stay in registers. Two taps are multiplied and added in int16 (smull,
smlal: exact, because no weight is −128; where one is, tap by tap), then widened (saddw, saddw2).
Roofline: 4 multiplications and 4 additions per 32 products; 16-byte loads of input, one per tap and pixel.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.integer.emitter import (
    PARALLEL_WORK,
    Emitter,
    broadcast,
    cast,
    int32,
    load,
    parameter,
    shuffle,
    store,
)
from targets.arm_tvm.integer.epilogue import read_residual, scaled, write
from targets.arm_tvm.integer.padding import emit_padded
from targets.arm_tvm.integer.specs import BLOCK, ConvSpec, Dot, Image
from targets.arm_tvm.integer.tiles import split

PIXELS = 4


def emit_depthwise(spec: ConvSpec, dot: Dot) -> Any:
    """The kernel: (source, weights, scale, bias[, residual], result), all flat."""
    from tvm import tirx

    emitter, channels = Emitter(), spec.result.blocks * BLOCK
    source = parameter(spec.source.elements, "int8", "x")
    weights = parameter(channels * spec.kernel[0] * spec.kernel[1], "int8", "w")
    factors = [parameter(channels, "float32", name) for name in ("scale", "bias")]
    result = parameter(spec.result.elements, "int8" if spec.epilogue.quantized else "float32", "y")
    residual = parameter(spec.result.elements, "int8", "residual") if spec.epilogue.residual_scale is not None else None
    work = spec.result.elements // BLOCK * spec.kernel[0] * spec.kernel[1] * 8
    with emitter.loop(spec.source.batch) as batch:
        image, origin, place = spec.source, source, batch * spec.source.batch_stride
        if spec.padded:
            origin, image = emit_padded(emitter, (source, place, spec.source), spec.extent, spec.pads, spec.fill)
            place = int32(0)
        with emitter.loop(spec.result.blocks * spec.result.height, parallel=work > PARALLEL_WORK) as part:
            block = tirx.floordiv(part, int32(spec.result.height))
            row = tirx.floormod(part, int32(spec.result.height))
            start = place + block * image.block_stride + row * (spec.strides[0] * image.row_stride)
            into = batch * spec.result.batch_stride + block * spec.result.block_stride + row * spec.result.row_stride
            for first, parts, columns in split(spec.result.width, PIXELS):
                with emitter.loop(parts) as at:
                    column = at * columns + first
                    begin = start + column * (spec.strides[1] * BLOCK)
                    sums = _sums(emitter, spec, (origin, begin, image), (weights, block), columns)
                    held = [[load(factor, block * BLOCK + 4 * part, 4) for part in range(4)] for factor in factors]
                    for pixel, total in enumerate(sums):
                        offset = into + (column + pixel) * BLOCK
                        added = read_residual(residual, offset, BLOCK)[0] if residual is not None else None
                        parts_ = [shuffle([total], range(4 * part, 4 * part + 4)) for part in range(4)]
                        values = scaled(parts_, held[0], held[1], added, spec.epilogue)
                        write(emitter, values, (result, offset), spec.epilogue, dot)
    return emitter.function([source, weights, *factors, *([residual] if residual is not None else []), result])


def _sums(
    emitter: Emitter, spec: ConvSpec, source: tuple[Any, Any, Image], weights: tuple[Any, Any], pixels: int
) -> list[Any]:
    origin, begin, image = source
    taps = [(y, x) for y in range(spec.kernel[0]) for x in range(spec.kernel[1])]
    sums = emitter.allocate(pixels * BLOCK, "int32")
    for pixel in range(pixels):
        emitter.add(store(sums, pixel * BLOCK, broadcast(0, "int32", BLOCK), BLOCK))
    together = 1 if spec.wide else 2
    for first in range(0, len(taps), together):
        chosen = list(enumerate(taps))[first : first + together]
        held = [
            emitter.let(load(weights[0], weights[1] * (len(taps) * BLOCK) + index * BLOCK, BLOCK))
            for index, _ in chosen
        ]
        for pixel in range(pixels):
            product = None
            for weight, (_, (y, x)) in zip(held, chosen, strict=True):
                distance = y * spec.dilations[0] * image.row_stride
                distance += (x * spec.dilations[1] + pixel * spec.strides[1]) * BLOCK
                value = load(origin, begin + distance, BLOCK)
                term = cast("int16x16", value) * cast("int16x16", weight)
                product = term if product is None else product + term
            total = load(sums, pixel * BLOCK, BLOCK) + cast("int32x16", product)
            emitter.add(store(sums, pixel * BLOCK, total, BLOCK))
    return [load(sums, pixel * BLOCK, BLOCK) for pixel in range(pixels)]
