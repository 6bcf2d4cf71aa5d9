"""Kernels at the borders of integer regions: the model's own layout ↔ images of int8."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from targets.arm_tvm.kernels.emitter import (
    PARALLEL_ELEMENTS,
    Emitter,
    broadcast,
    cast,
    int32,
    load,
    shuffle,
    store,
)
from targets.arm_tvm.kernels.integer.requantize import quantized, quarters, split_sums
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, Epilogue, Image, PackSpec, UnpackSpec
from targets.arm_tvm.kernels.integer.vectors import Vectors, vectors_of


def emit_pack(spec: PackSpec, dot: Dot) -> Any:
    """The kernel: (source, result), all flat."""
    emitter = Emitter()
    batch, channels, height, width = spec.source
    source = emitter.parameter((batch * channels * height * width,), spec.dtype, "x")
    result = emitter.parameter((spec.result.elements,), vectors_of(dot).stored, "y")
    if spec.result.layout == "rows" and channels % BLOCK == 0:
        with emitter.loop(spec.result.elements // BLOCK, parallel=spec.result.elements > PARALLEL_ELEMENTS) as index:
            value = _quantize(load(source, index * BLOCK, BLOCK), spec, dot)
            emitter.add(store(result, index * BLOCK, value, BLOCK))
    elif spec.result.layout == "pixels":
        _pack_pixels(emitter, spec, source, result, dot)
    else:
        _pack_blocked(emitter, _as_blocks(spec), source, result, dot)
    return emitter.function()


def _as_blocks(spec: PackSpec) -> PackSpec:
    """A matrix's rows as images of one pixel: the same memory."""
    if spec.result.layout != "rows":
        return spec
    return replace(spec, source=(spec.result.width, spec.result.channels, 1, 1), result=_row_images(spec.result))


def _row_images(image: Image) -> Image:
    return Image(image.width, image.channels, 1, 1)


def _quantize(value: Any, spec: PackSpec, dot: Dot) -> Any:
    """16 elements of the source → an image's, as they are stored."""
    vectors = vectors_of(dot)
    if spec.dtype == vectors.stored:
        return value
    if spec.dtype == "int8":
        return vectors.unsigned(value)
    if spec.dtype == "uint8":
        return cast("int8x16", cast("int16x16", value) - broadcast(128, BLOCK, "int16"))
    scaled = value * broadcast(1.0 / spec.scale, BLOCK, "float32")
    return vectors.unsigned(quantized(split_sums(scaled, vectors.lanes), Epilogue(zero_point=spec.zero_point), dot))


def _pack_pixels(emitter: Emitter, spec: PackSpec, source: Any, result: Any, dot: Dot) -> None:
    """16 pixels of a row at a time; the last ones overlap those before."""
    batch, channels, height, width = spec.source
    starts = [*range(0, width - BLOCK + 1, BLOCK), *([width - BLOCK] if width % BLOCK else [])]
    interleaved = [BLOCK * channel + pixel for pixel in range(BLOCK) for channel in range(channels)]
    _fill(emitter, spec, result, dot)
    with emitter.loop(batch * height) as line:
        from tvm import tirx

        image, row = tirx.floordiv(line, int32(height)), tirx.floormod(line, int32(height))
        into = image * spec.result.batch_stride + (row + spec.result.origin[0]) * spec.result.row_stride
        into = into + spec.result.origin[1] * channels
        begin = image * (channels * height * width) + row * width
        whole = width // BLOCK
        with emitter.loop(whole) as index:
            _pixels(
                emitter,
                spec,
                (source, begin + index * BLOCK),
                (result, into + index * BLOCK * channels),
                interleaved,
                dot,
            )
        for start in starts[whole:]:
            _pixels(emitter, spec, (source, begin + start), (result, into + start * channels), interleaved, dot)


def _pixels(
    emitter: Emitter,
    spec: PackSpec,
    source: tuple[Any, Any],
    target: tuple[Any, Any],
    interleaved: list[int],
    dot: Dot,
) -> None:
    _, channels, height, width = spec.source
    planes = [load(source[0], source[1] + channel * (height * width), BLOCK) for channel in range(channels)]
    vectors = [emitter.let(_quantize(plane, spec, dot)) for plane in planes]
    mixed = shuffle(vectors, interleaved) if channels > 1 else vectors[0]
    emitter.add(store(target[0], target[1], mixed, BLOCK * channels))


def _fill(emitter: Emitter, spec: PackSpec, result: Any, dot: Dot) -> None:
    """The zero point everywhere; what the image covers is written over."""
    elements, vectors = spec.result.elements, vectors_of(dot)
    zero = vectors.constant(spec.zero_point)
    with emitter.loop(elements // BLOCK) as index:
        emitter.add(store(result, index * BLOCK, broadcast(zero, BLOCK, vectors.stored), BLOCK))
    for at in range(elements - elements % BLOCK, elements):
        from tvm import tirx

        emitter.add(store(result, at, tirx.const(zero, vectors.stored), 1))


def _pack_blocked(emitter: Emitter, spec: PackSpec, source: Any, result: Any, dot: Dot) -> None:
    batch, channels, height, width = spec.source
    parallel = spec.result.elements > PARALLEL_ELEMENTS
    for first, blocks in _block_ranges(channels):
        with emitter.loop(batch) as image, emitter.loop(blocks * height * width, parallel=parallel) as index:
            from tvm import tirx

            block = tirx.floordiv(index, int32(height * width)) + first
            pixel = tirx.floormod(index, int32(height * width))
            begin = image * (channels * height * width) + block * (BLOCK * height * width) + pixel
            gathered = emitter.allocate(BLOCK, spec.dtype, "global")
            for channel in range(BLOCK):
                # Channels past the last one repeat it: any value will do, their weights are zero.
                present = min(channel, channels - first * BLOCK - 1)
                value = load(source, begin + present * (height * width), 1)
                emitter.add(store(gathered, channel, value, 1))
            into = image * spec.result.batch_stride + block * spec.result.block_stride + pixel * BLOCK
            emitter.add(store(result, into, _quantize(load(gathered, 0, BLOCK), spec, dot), BLOCK))


def _block_ranges(channels: int) -> list[tuple[int, int]]:
    """(first, count) of the full blocks, and of the one that is not full."""
    whole, rest = divmod(channels, BLOCK)
    return [*([(0, whole)] if whole else []), *([(whole, 1)] if rest else [])]


def emit_unpack(spec: UnpackSpec, dot: Dot) -> Any:
    """The kernel: (source, result), all flat."""
    emitter, image, vectors = Emitter(), spec.source, vectors_of(dot)
    whole = image.layout == "rows" and image.channels % BLOCK == 0
    image = image if image.layout == "blocked" or whole else _row_images(image)
    stored = vectors.stored if spec.source_dtype == "int8" else spec.source_dtype
    source = emitter.parameter((image.elements,), stored, "x")
    area = image.height * image.width
    result = emitter.parameter((image.batch * image.channels * area,), spec.dtype, "y")
    if whole:
        with emitter.loop(image.elements // BLOCK) as index:
            emitter.add(
                store(result, index * BLOCK, _restore(load(source, index * BLOCK, BLOCK), spec, vectors), BLOCK)
            )
        return emitter.function()
    for first, blocks in _block_ranges(image.channels):
        with (
            emitter.loop(image.batch) as batch,
            emitter.loop(blocks * area, parallel=image.elements > PARALLEL_ELEMENTS) as at,
        ):
            from tvm import tirx

            block, pixel = tirx.floordiv(at, int32(area)) + first, tirx.floormod(at, int32(area))
            place = batch * image.batch_stride + block * image.block_stride + pixel * BLOCK
            held = emitter.allocate(BLOCK, spec.dtype, "global")
            emitter.add(store(held, 0, _restore(load(source, place, BLOCK), spec, vectors), BLOCK))
            into = batch * (image.channels * area) + block * (BLOCK * area) + pixel
            for channel in range(min(BLOCK, image.channels - first * BLOCK)):
                emitter.add(store(result, into + channel * area, load(held, channel, 1), 1))
    return emitter.function()


def _restore(value: Any, spec: UnpackSpec, vectors: Vectors) -> Any:
    """16 elements of the image → the result's type."""
    stored = vectors.stored if spec.source_dtype == "int8" else spec.source_dtype
    if stored == spec.dtype:
        return value
    value = vectors.signed(value)
    if spec.dtype == "int8":
        return value
    if spec.dtype == "uint8":
        return cast("uint8x16", cast("int16x16", value) + broadcast(128, BLOCK, "int16"))
    whole = shuffle(quarters(value), range(BLOCK)) - broadcast(spec.zero_point, BLOCK, "int32")
    return cast("float32x16", whole) * broadcast(spec.scale, BLOCK, "float32")
