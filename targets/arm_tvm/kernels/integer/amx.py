"""Integer convolution in AMX's tiles: 16 × 16 sums of products of rows of up to 64 bytes.

Tiling: two tiles of pixels × two of 16 output channels, or four × one where their number is odd, are four tiles of
sums; they stay in registers over the whole reduction. A row of a pixel's tile is what its window has in one row, one
run of bytes of the image as it lies there: tileloadd takes neighbouring pixels by their distance in memory, which may
be less than the row is long. So nothing is gathered, but for windows of one pixel with many results, whose runs in
blocks of channels would be short (`runs.as_multiplied`). Pixels are numbered through all rows of the image where
windows move by one: those that lie across its edge are computed and not stored. The last tile overlaps the one before.
Roofline: tdpbusd takes as many cycles as the longer of pixels and words of a row, for 16 channels, and its sums can
be added to after 52: four tiles of sums hide that. Four of them to 2 · 16 + 2 · words loads of rows. Results go
through memory to the requantization, 16 channels of a pixel at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.amx_tiles import (
    ROW_BYTES,
    add_products,
    load_tile,
    release_tiles,
    set_shapes,
    store_tile,
)
from targets.arm_tvm.kernels.emitter import Emitter, address, int32, load
from targets.arm_tvm.kernels.integer.runs import runs_of
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Image
from targets.arm_tvm.kernels.integer.tiles import Tile
from targets.arm_tvm.kernels.runs import Runs, chunk_words

SEGMENT = 8
"""Pairs of tiles between two settings of the tiles' shapes, which take the time of some products."""
PARALLEL_WORDS = 1 << 15
"""Words times pixels times blocks of channels, three microseconds of AMX, below which other threads are not started."""
PIXELS, WEIGHTS = (4, 5, 7), (6, 7)
"""Tile registers of each, taken in turn; sums have those before. Four tiles of pixels go with one of weights."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of an image in tiles of the same size.

    Args:
        size: Pixels of a tile.
        count: Tiles of an image.
        parts: Tiles of a row; 0 where pixels are numbered through all rows.
        pitch: Pixels from one row to the next where they are.
    """

    size: int
    count: int
    parts: int
    pitch: int


def pixels_of(spec: ConvSpec, image: Image, tile: Tile) -> Pixels:
    """How the pixels of a convolution's result are divided among tiles.

    Args:
        spec: The convolution.
        image: Its source as the windows see it, border included.
        tile: `columns` are the pixels of a tile.
    """
    if spec.strides == (1, 1):
        pitch = image.width
        total = (spec.result.height - 1) * pitch + spec.result.width
        size = min(tile.columns, total)
        return Pixels(size, -(-total // size), 0, pitch)
    parts = -(-spec.result.width // tile.columns)
    return Pixels(tile.columns, parts * spec.result.height, parts, image.width)


@dataclass(frozen=True)
class Tiled:
    """A convolution while its kernel is written.

    Args:
        spec: The convolution.
        tile: Its tiles: `rows` of pixels, `groups` of four channels, `columns` pixels each.
        image: The source as the windows see it.
        source, weights, start: The buffers.
        finish: Stores 16 results of a channel block: (sums, block, row, column).
    """

    spec: ConvSpec
    tile: Tile
    image: Image
    source: Any
    weights: Any
    start: Any
    finish: Callable[[list[Any], Any, Any, Any], None]

    @property
    def blocks(self) -> int:
        """Tiles of output channels that are computed together."""
        return 4 * self.tile.groups // BLOCK

    @property
    def runs(self) -> Runs:
        """What each pixel reads."""
        return runs_of(self.spec)


def emit_tiled(emitter: Emitter, work: Tiled, place: Any) -> None:
    """All pixels of one image whose source begins at an offset."""
    from tvm import tirx

    pixels = pixels_of(work.spec, work.image, work.tile)
    pairs = -(-pixels.count // work.tile.rows)
    segments = -(-pairs // SEGMENT)
    channels = work.spec.result.blocks // work.blocks
    words = channels * work.blocks * pixels.count * pixels.size * work.runs.total_words
    with emitter.loop(channels * segments, parallel=words > PARALLEL_WORDS) as part:
        # Channels outermost: their weights stay in the cache while the image passes.
        channel, segment = tirx.floordiv(part, int32(segments)), tirx.floormod(part, int32(segments))
        set_shapes(emitter, _shapes(work, pixels.size))
        size = work.tile.rows * work.blocks * pixels.size
        sums = emitter.allocate(2 * size, "int32x16", "local")
        rest = min(SEGMENT, pairs) if segments == 1 else tirx.Min(int32(SEGMENT), int32(pairs) - segment * SEGMENT)
        # A pair is requantized while the next one is summed up: in two halves of the buffer.
        with emitter.loop(rest + 1) as pair:
            with emitter.when(pair < rest):
                tiles = _tiles(work, pixels, segment * SEGMENT + pair)
                _sum_up(emitter, work, pixels, (place, channel, tiles), (sums, tirx.bitwise_and(pair, 1) * size))
            with emitter.when(pair > 0):
                tiles = _tiles(work, pixels, segment * SEGMENT + pair - 1)
                half = tirx.bitwise_and(pair + 1, 1) * size
                for index, number in enumerate(tiles):
                    begin = half + index * work.blocks * pixels.size
                    _store_tile(emitter, work, pixels, (channel, number), (sums, begin))
        release_tiles(emitter)


def _tiles(work: Tiled, pixels: Pixels, pair: Any) -> list[Any]:
    """Numbers of the tiles of a pair; the last one repeats the one before where there is none."""
    from tvm import tirx

    first = pair * work.tile.rows
    rest = [tirx.Min(first + index, int32(pixels.count - 1)) for index in range(1, work.tile.rows)]
    return [first, *rest]


def _shapes(work: Tiled, size: int) -> list[tuple[int, int]]:
    """Rows and bytes of a row of each tile register."""
    words = chunk_words(work.runs)
    sums, pixels, weights = (size, ROW_BYTES), (size, 4 * words), (words, ROW_BYTES)
    return [*[sums] * 4, pixels, pixels, weights, weights if work.blocks > 1 else pixels]


def _sum_up(
    emitter: Emitter, work: Tiled, pixels: Pixels, at: tuple[Any, Any, list[Any]], into: tuple[Any, Any]
) -> None:
    """The whole reduction of a pair of tiles, into memory."""
    place, channel, tiles = at
    sums, half = into
    runs, words, blocks = work.runs, chunk_words(work.runs), work.blocks
    places = [emitter.let(place + _offset(work, pixels, number)) for number in tiles]
    for index in range(len(tiles)):
        for block in range(blocks):
            # Every pixel begins with the same: rows that are no distance apart.
            start = address(work.start, (channel * blocks + block) * BLOCK)
            load_tile(emitter, index * blocks + block, start, 0)
    size = 4 * words * BLOCK
    chunks = runs.words // words
    weights = channel * (blocks * BLOCK * 4 * runs.total_words)
    with emitter.loop(runs.blocks) as block, emitter.loop(runs.rows) as row, emitter.loop(runs.taps) as tap:
        source = block * work.image.block_stride + row * (work.spec.dilations[0] * work.image.row_stride)
        source = source + tap * (work.spec.dilations[1] * work.image.pixel_stride)
        step = ((block * runs.rows + row) * runs.taps + tap) * chunks
        with emitter.loop(chunks) as chunk:
            for index in range(blocks):
                offset = weights + ((step + chunk) * blocks + index) * size
                load_tile(emitter, WEIGHTS[index], address(work.weights, offset), ROW_BYTES)
            for index, begin in enumerate(places):
                register = PIXELS[index % len(PIXELS)]
                distance = work.spec.strides[1] * work.image.pixel_stride
                load_tile(emitter, register, address(work.source, begin + source + chunk * (4 * words)), distance)
                for number in range(blocks):
                    add_products(emitter, "tdpbusd", index * blocks + number, register, WEIGHTS[number])
    for index in range(len(tiles) * blocks):
        store_tile(emitter, index, address(sums, half + index * pixels.size))


def _first(work: Tiled, pixels: Pixels, number: Any) -> tuple[Any, Any]:
    """Row and column of a tile's first pixel; row 0 where pixels are numbered through all rows."""
    from tvm import tirx

    if not pixels.parts:
        last = (work.spec.result.height - 1) * pixels.pitch + work.spec.result.width - pixels.size
        return int32(0), tirx.Min(number * pixels.size, int32(last))
    row, part = tirx.floordiv(number, int32(pixels.parts)), tirx.floormod(number, int32(pixels.parts))
    return row, tirx.Min(part * pixels.size, int32(work.spec.result.width - pixels.size))


def _offset(work: Tiled, pixels: Pixels, number: Any) -> Any:
    """From the first byte of the image to the first that a tile's first pixel reads."""
    row, column = _first(work, pixels, number)
    down, right = work.spec.strides
    return row * (down * work.image.row_stride) + column * (right * work.image.pixel_stride)


def _store_tile(emitter: Emitter, work: Tiled, pixels: Pixels, at: tuple[Any, Any], sums: tuple[Any, Any]) -> None:
    """Requantizes the sums of one tile of pixels."""
    from tvm import tirx

    channel, number = at
    buffer, begin = sums
    row, column = (emitter.let(value) for value in _first(work, pixels, number))
    with emitter.loop(pixels.size) as pixel:
        place = emitter.let(column + pixel)
        y = row if pixels.parts else emitter.let(tirx.floordiv(place, int32(pixels.pitch)))
        x = place if pixels.parts else emitter.let(place - y * pixels.pitch)
        inside = None if pixels.parts or pixels.pitch == work.spec.result.width else x < work.spec.result.width
        with emitter.when(inside):
            values = [load(buffer, begin + block * pixels.size + pixel, 1) for block in range(work.blocks)]
            work.finish(values, channel, y, x)
