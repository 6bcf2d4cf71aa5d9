"""Integer convolution and matrix product.

Tiling: 4·G output channels × P pixels of accumulators stay in registers over the whole reduction. An input vector holds
16 channels of one pixel (or 16 bytes of a row, where pixels are shorter, or of a whole window: `gathered`); weights are
packed to be read in order.

    sdot     acc (G × P int32x4) += weights (4 channels × 4 inputs) · one 32-bit lane of the pixel: 16 products an
             instruction. G = 2, P = 9: 18 accumulators, 9 inputs, weights in the rest; 72 sdot to 4 + 4.5 loads.
    smmla    acc (2G × P/2, 2 pixels × 2 channels) += 2 × 8 · 8 × 2: 32 products an instruction, two zips a pixel pair.
    widen    acc (4G × P, partial sums) += smull, smlal2, sadalp: 16 products in three. Two products fit int16 because
             no weight is −128; where one is, each product is widened by itself.
    generic  the same in plain vector arithmetic, for machines of another kind.

Roofline: products over 16 (32 with smmla) over the dot units' rate; a tile's weights stay in the first-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from targets.arm_tvm.kernels.emitter import (
    PARALLEL_WORK,
    Emitter,
    int32,
    load,
)
from targets.arm_tvm.kernels.integer.amx import Tiled, emit_tiled
from targets.arm_tvm.kernels.integer.gathered import gather_row, gathered
from targets.arm_tvm.kernels.integer.padding import emit_padded, emit_rows
from targets.arm_tvm.kernels.integer.products import PRODUCTS, Operands, Product
from targets.arm_tvm.kernels.integer.requantize import read_residual, scaled, write
from targets.arm_tvm.kernels.integer.runs import as_multiplied, runs_of
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot, Image
from targets.arm_tvm.kernels.integer.tiles import Tile, split
from targets.arm_tvm.kernels.integer.vectors import vectors_of

FEW_PIXELS = 6
"""With fewer most rows of AMX's tiles are empty, and vpdpbusd takes weights as fast as they come from memory."""
UNROLLED_TAPS = 3
"""Columns of a window that are written out; more of them become a loop."""


@dataclass(frozen=True)
class _Arrays:
    """The kernel's arguments, and the input as the windows see it."""

    operands: Operands
    scale: Any
    bias: Any
    residual: Any
    result: Any
    image: Image


def chunks(spec: ConvSpec, dot: Dot) -> tuple[int, ...]:
    """Lanes of four inputs in each 16-byte vector of a tap row: all of a block, or what a short row leaves."""
    if spec.source.layout != "pixels":
        return (4,)
    lanes = -(-spec.kernel[1] * spec.source.channels // 4)
    whole, rest = divmod(lanes, 4)
    # sdot multiplies lane by lane and leaves out what a row has not; the others take whole vectors, and weights of
    # zero for the rest.
    short = (rest if dot == "sdot" else 4,) if rest else ()
    return (4,) * whole + short


def dot_for(spec: ConvSpec, dot: Dot) -> Dot:
    """The instruction a convolution uses: in short rows there are no pairs of pixels that smmla could take.

    AMX has none for single channels, and few pixels do not fill its tiles.
    """
    if dot == "amx_int8":
        few = spec.result.height * spec.result.width < FEW_PIXELS
        return "avx512_vnni" if spec.depthwise or few else dot
    return "sdot" if dot == "smmla" and spec.source.layout == "pixels" else dot


def emit_conv(spec: ConvSpec, tile: Tile, dot: Dot) -> Any:
    """The kernel: (source, weights, scale, bias[, start][, residual], result), all flat."""
    emitter = Emitter()
    groups = spec.result.blocks * BLOCK
    vectors, own = vectors_of(dot), gathered(spec, dot)
    source = emitter.parameter((spec.source.elements,), vectors.stored, "x")
    weights = emitter.parameter((groups * own.kernel[0] * _row_bytes(own, dot),), "int8", "w")
    scale, bias = (emitter.parameter((groups,), "float32", name) for name in ("scale", "bias"))
    start = emitter.parameter((groups,), "int32", "start") if vectors.moved else None
    size, adds = spec.result.elements, spec.epilogue.residual_scale is not None
    residual = emitter.parameter((size,), vectors.stored, "residual") if adds else None
    result = emitter.parameter((size,), vectors.stored if spec.epilogue.quantized else "float32", "y")
    with emitter.loop(spec.source.batch) as batch:
        image, origin, place = spec.source, source, batch * spec.source.batch_stride
        if spec.padded and spec.source.layout == "blocked":
            fill = vectors.constant(spec.fill)
            origin, image = emit_padded(emitter, (source, place, spec.source), spec.extent, spec.pads, fill)
            # The copy holds one image only.
            place = int32(0)
        multiplied = as_multiplied(spec, dot)
        if multiplied is not spec:
            origin, image = emit_rows(emitter, (source, place, spec.source), multiplied.source.channels)
            place = int32(0)
        arrays = _Arrays(Operands(origin, weights, start, spec.wide), scale, bias, residual, result, image)
        places = place, batch * spec.result.batch_stride
        if vectors.tiled:
            _amx_tiles(emitter, multiplied, tile, dot, arrays, places)
        elif own != spec:
            _gathered_rows(emitter, (spec, own), tile, dot, arrays, places)
        else:
            _tiles(emitter, spec, tile, dot, arrays, places)
    return emitter.function()


def _row_bytes(spec: ConvSpec, dot: Dot) -> int:
    if not vectors_of(dot).by_lane:
        return 4 * runs_of(as_multiplied(spec, dot)).total_words // spec.kernel[0]
    lanes = 4 * sum(chunks(spec, dot))
    return lanes if spec.source.layout == "pixels" else lanes * spec.kernel[1] * spec.source.blocks


def _tiles(emitter: Emitter, spec: ConvSpec, tile: Tile, dot: Dot, arrays: _Arrays, places: tuple[Any, Any]) -> None:
    """All tiles of one image: channels outermost, so that their weights stay in the cache."""
    from tvm import tirx

    channels = spec.result.blocks * 4 // tile.groups
    work = spec.result.height * spec.result.width * spec.result.blocks * spec.kernel[0] * _row_bytes(spec, dot) // 4
    for first_row, row_parts, rows in split(spec.result.height, tile.rows):
        with emitter.loop(channels * row_parts, parallel=work > PARALLEL_WORK) as part:
            channel, step = tirx.floordiv(part, int32(row_parts)), tirx.floormod(part, int32(row_parts))
            row = step * rows + first_row
            for first, parts, columns in split(spec.result.width, tile.columns):
                with emitter.loop(parts) as at:
                    part_tile = Tile(tile.groups, rows, columns)
                    _tile(emitter, spec, part_tile, dot, arrays, places, (channel, row, at * columns + first))


def _gathered_rows(
    emitter: Emitter,
    specs: tuple[ConvSpec, ConvSpec],
    tile: Tile,
    dot: Dot,
    arrays: _Arrays,
    places: tuple[Any, Any],
) -> None:
    """All tiles of one image, from windows that are gathered row by row.

    Args:
        emitter: Takes the statements.
        specs: The convolution, and what `gathered` makes of it.
        tile: Its register tile.
        dot: How it multiplies.
        arrays: The arguments.
        places: Where the image begins in the source and in the result.
    """
    spec, own = specs
    work = own.result.height * own.result.width * own.result.blocks * _row_bytes(own, dot) // 4
    with emitter.loop(own.result.height, parallel=work > PARALLEL_WORK) as row:
        buffer = emitter.allocate(own.source.width * own.source.pixel_stride + BLOCK, "int8", "global")
        first = places[0] + row * (spec.strides[0] * spec.source.row_stride)
        gather_row(emitter, spec, (arrays.operands.source, first), (buffer, own.source))
        windows = replace(arrays, operands=replace(arrays.operands, source=buffer), image=own.source)
        with emitter.loop(own.result.blocks * 4 // tile.groups) as channel:
            for start, parts, columns in split(own.result.width, tile.columns):
                with emitter.loop(parts) as at:
                    part = Tile(tile.groups, 1, columns)
                    place = channel, row, at * columns + start
                    _tile(emitter, own, part, dot, windows, (int32(0), places[1]), place)


def _amx_tiles(
    emitter: Emitter, spec: ConvSpec, tile: Tile, dot: Dot, arrays: _Arrays, places: tuple[Any, Any]
) -> None:
    pixel = Tile(tile.groups, 1, 1)

    def finish(values: list[Any], channel: Any, row: Any, column: Any) -> None:
        _finish(emitter, spec, pixel, dot, arrays, places[1], (channel, row, column), [values])

    operands = arrays.operands
    work = Tiled(spec, tile, arrays.image, operands.source, operands.weights, operands.start, finish)
    emit_tiled(emitter, work, places[0])


def _tile(
    emitter: Emitter,
    spec: ConvSpec,
    tile: Tile,
    dot: Dot,
    arrays: _Arrays,
    places: tuple[Any, Any],
    at: tuple[Any, Any, Any],
) -> None:
    channel, row, column = at
    product = PRODUCTS[dot](emitter, tile, arrays.operands, channel * (4 * tile.groups))
    stride = arrays.image.pixel_stride
    steps = [
        y * spec.strides[0] * arrays.image.row_stride + x * spec.strides[1] * stride
        for y in range(tile.rows)
        for x in range(tile.columns)
    ]
    origin = places[0] + row * (spec.strides[0] * arrays.image.row_stride) + column * (spec.strides[1] * stride)
    weights = channel * (4 * tile.groups * spec.kernel[0] * _row_bytes(spec, dot))
    _reduce(emitter, spec, dot, arrays, (origin, steps, weights), product, tile)
    _finish(emitter, spec, tile, dot, arrays, places[1], at, product.sums())


def _reduce(
    emitter: Emitter,
    spec: ConvSpec,
    dot: Dot,
    arrays: _Arrays,
    start: tuple[Any, list[int], Any],
    product: Product,
    tile: Tile,
) -> None:
    """Every tap of the window and every block of channels."""
    origin, steps, weights = start
    image, (height, width) = arrays.image, spec.kernel
    if not vectors_of(dot).by_lane:
        _reduce_by_words(emitter, spec, image, start, product)
        return
    size = 16 * tile.groups

    def step(base: Any, offset: Any, lanes: int) -> None:
        product.add([base + distance for distance in steps], offset, lanes)

    if image.layout == "pixels":
        parts = chunks(spec, dot)
        with emitter.loop(height) as y:
            base = origin + y * (spec.dilations[0] * image.row_stride)
            if len(parts) > UNROLLED_TAPS and set(parts) == {4}:
                with emitter.loop(len(parts)) as index:
                    step(base + index * BLOCK, weights + (y * len(parts) + index) * (4 * size), 4)
                return
            for index, lanes in enumerate(parts):
                step(base + index * BLOCK, weights + (y * sum(parts) + sum(parts[:index])) * size, lanes)
        return
    with emitter.loop(spec.source.blocks) as block, emitter.loop(height) as y:
        base = origin + block * image.block_stride + y * (spec.dilations[0] * image.row_stride)
        tap = (block * height + y) * width
        if width <= UNROLLED_TAPS:
            for x in range(width):
                step(base + x * spec.dilations[1] * image.pixel_stride, weights + (tap + x) * 4 * size, 4)
        else:
            with emitter.loop(width) as x:
                step(base + x * (spec.dilations[1] * image.pixel_stride), weights + (tap + x) * (4 * size), 4)


def _reduce_by_words(
    emitter: Emitter, spec: ConvSpec, image: Image, start: tuple[Any, list[int], Any], product: Product
) -> None:
    """The same, four inputs of every pixel an iteration: of a longer body LLVM moves broadcasts up and spills sums."""
    origin, steps, weights = start
    runs, size = runs_of(spec), 4 * product.tile.groups * 4
    with emitter.loop(runs.blocks) as block, emitter.loop(runs.rows) as y, emitter.loop(runs.taps) as x:
        base = origin + block * image.block_stride + y * (spec.dilations[0] * image.row_stride)
        base = emitter.let(base + x * (spec.dilations[1] * image.pixel_stride))
        step = ((block * runs.rows + y) * runs.taps + x) * runs.words
        with emitter.loop(runs.words) as word:
            places = [base + (distance + word * 4) for distance in steps]
            product.add(places, weights + (step + word) * size, 1)


def _finish(
    emitter: Emitter,
    spec: ConvSpec,
    tile: Tile,
    dot: Dot,
    arrays: _Arrays,
    place: Any,
    at: tuple[Any, Any, Any],
    sums: list[list[Any]],
) -> None:
    from tvm import tirx

    channel, row, column = at
    first, image = channel * (4 * tile.groups), spec.result
    lanes = vectors_of(dot).lanes
    count = 4 * tile.groups // lanes
    scales = [emitter.let(load(arrays.scale, first + lanes * part, lanes)) for part in range(count)]
    biases = [emitter.let(load(arrays.bias, first + lanes * part, lanes)) for part in range(count)]
    block, within = tirx.floordiv(first, int32(BLOCK)), tirx.floormod(first, int32(BLOCK))
    base = place + block * image.block_stride + within + row * image.row_stride + column * image.pixel_stride
    base = emitter.let(base)
    for index, accumulators in enumerate(sums):
        y, x = divmod(index, tile.columns)
        distance = y * image.row_stride + x * image.pixel_stride
        for part in range(0, count, BLOCK // lanes):
            offset = base + distance + (part * lanes // BLOCK) * image.block_stride
            chosen = slice(part, min(part + BLOCK // lanes, count))
            channels = lanes * (chosen.stop - chosen.start)
            residual = read_residual(arrays.residual, offset, channels, dot) if arrays.residual is not None else None
            values = scaled(accumulators[chosen], scales[chosen], biases[chosen], residual, spec.epilogue)
            write(emitter, values, (arrays.result, offset), spec.epilogue, dot)
