"""Convolutions and products in AMX's tiles: 16 × 16 sums in float32 of products of rows of up to 32 bfloat16.

Tiling: `rows` tiles of pixels × `blocks` of 16 filters are tiles of sums that stay in registers over the whole
reduction. A row of a pixel's tile is a part of what its window has in one row: tileloadd takes neighbouring pixels by
their distance in memory, so nothing is gathered. Pixels are numbered through all rows and images where that takes
fewer tiles: those that lie across an edge are computed and not stored. The last tile overlaps the one before it.

Roofline: tdpbf16ps takes as many cycles as the longer of pixels and words of a row, for 16 filters, at best 512
products a cycle. With one tile of pixels, as small maps have, weights are read once for each product: they stream
from where they lie, and are asked for ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.amx_tiles import (
    REGISTERS,
    ROW_BYTES,
    add_products,
    load_tile,
    release_tiles,
    set_shapes,
    store_tile,
)
from targets.arm_tvm.kernels.emitter import Emitter, address, gather, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point.bfloat16 import (
    LANES,
    applies,
    copied,
    image_of,
    pack,
    runs_of,
    weight_words,
)
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.floating_point.sources import result_shape, source_shape
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.integer.runs import chunk_words
from targets.arm_tvm.kernels.machine import Bfloat16, Machine

__all__ = ["choices", "emit", "pack"]

TILES = ((2, 2), (1, 4), (1, 3), (1, 2), (2, 1), (1, 1))
"""Tiles of pixels × of filters that the registers have room for."""
SEGMENT = 8
"""Groups of tiles between two settings of the tiles' shapes, which take the time of some products."""
PARALLEL_CYCLES = 1 << 15
"""Cycles of a kernel below which other threads are not started: some microseconds."""
LATENCY = 52
"""Cycles until a sum can be added to again."""
LOAD_CYCLES = 8
"""Of a tile."""
AHEAD = 8
"""Tiles of weights that are asked for ahead of their use."""
INSTRUCTIONS = 2.0
"""That other kernels execute in a cycle: what costs are compared in."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of all results in tiles of the same size.

    Args:
        size: Pixels of a tile.
        count: Tiles.
        parts: Tiles of a row of results; 0 where pixels are numbered through all rows.
        pitch: Pixels from one row to the next where they are.
        rows: Rows of results from one image to the next where they are.
    """

    size: int
    count: int
    parts: int
    pitch: int
    rows: int


def pixels_of(work: ConvWorkload) -> Pixels:
    """How results are divided among tiles: by rows, or through all of them, whichever takes fewer."""
    (height, width), (down, right), image = work.result, work.strides, image_of(work)
    parts = blocks(width, LANES)
    by_rows = Pixels(blocks(width, parts), parts * height * work.batch, parts, 0, height)
    if work.layout == "rows" or down * image.row % (right * image.pixel):
        return by_rows
    pitch, rows = down * image.row // (right * image.pixel), image.batch // (down * image.row)
    total = ((work.batch - 1) * rows + height - 1) * pitch + width
    count = blocks(total, LANES)
    return Pixels(blocks(total, count), count, 0, pitch, rows) if count < by_rows.count else by_rows


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Tiles that fit, the cheapest first; none where the machine has no AMX or the workload does not fit it."""
    if machine.bfloat16 is not Bfloat16.AMX or not applies(workload, machine):
        return ()
    size, pixels = 4 * weight_words(workload), pixels_of(workload)
    fitting = [
        Choice("amx_bf16", {"rows": rows, "blocks": q}, _cost(workload, machine, rows, q), size)
        for rows, q in TILES
        if blocks(workload.filters, LANES) % q == 0 and rows <= pixels.count
        if like is None or q == like.parameters["blocks"]
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost))


def _cost(work: ConvWorkload, machine: Machine, rows: int, q: int) -> float:
    words = weight_words(work)
    step = max(LANES * rows * q, LATENCY, LOAD_CYCLES * (rows + q))
    groups = blocks(pixels_of(work).count, rows) * blocks(work.filters, LANES) // q
    steps = runs_of(work).total_words // chunk_words(runs_of(work))
    stored = groups * rows * q * pixels_of(work).size * (2 + len(work.epilogue))
    return groups * steps * step * INSTRUCTIONS + stored + machine.streaming_cost(2 * words, "bfloat16")


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Tiled(workload, choice).function()


class _Tiled:
    """One kernel while it is written."""

    def __init__(self, work: ConvWorkload, choice: Choice) -> None:
        self.work, self.rows, self.q = work, choice.parameters["rows"], choice.parameters["blocks"]
        self.image, self.runs, self.pixels = image_of(work), runs_of(work), pixels_of(work)
        self.words, self.out_blocks = chunk_words(self.runs), blocks(work.filters, LANES)
        self.first_pixels = self.rows * self.q
        self.first_weights = self.first_pixels + self.rows
        self.emitter = Emitter()

    def function(self) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        emitter, work = self.emitter, self.work
        source = emitter.parameter(source_shape(work, LANES), "float32", "x")
        self.weights = emitter.parameter((weight_words(work),), "int32", "w")
        self.bias = emitter.parameter((self.out_blocks * LANES,), "float32", "bias")
        shape = result_shape(work, LANES)
        self.residual = emitter.parameter(shape, "float32", "r") if "add" in work.epilogue else None
        self.result = emitter.parameter(shape, "float32", "y")
        self.source = copied(emitter, work, source)
        groups, bundles = self.out_blocks // self.q, blocks(self.pixels.count, self.rows)
        segments = blocks(bundles, SEGMENT)
        cycles = groups * bundles * self.rows * self.q * LANES * self.runs.total_words // self.words
        with emitter.loop(groups * segments, parallel=cycles > PARALLEL_CYCLES) as part:
            # Filters outermost: their weights stay in the cache while the images pass.
            group, segment = tirx.floordiv(part, int32(segments)), tirx.floormod(part, int32(segments))
            rest = bundles if segments == 1 else tirx.Min(int32(SEGMENT), int32(bundles) - segment * SEGMENT)
            self._segment(group, segment * SEGMENT, rest)
        return emitter.function()

    def _segment(self, group: Any, first: Any, count: Any) -> None:
        """Some bundles of tiles; one is finished while the next is summed up, in two halves of a buffer."""
        from tvm import tirx

        emitter, size = self.emitter, self.pixels.size
        set_shapes(emitter, self._shapes())
        half = self.rows * self.q * size
        sums = emitter.allocate(2 * half, "float32x16", "local")
        with emitter.loop(count + 1) as bundle:
            with emitter.when(bundle < count):
                self._sum_up(group, self._numbers(first + bundle), (sums, tirx.bitwise_and(bundle, 1) * half))
            with emitter.when(bundle > 0):
                begin = tirx.bitwise_and(bundle + 1, 1) * half
                for index, number in enumerate(self._numbers(first + bundle - 1)):
                    self._finish(group, number, (sums, begin + index * self.q * size))
        release_tiles(emitter)

    def _shapes(self) -> list[tuple[int, int]]:
        weights = REGISTERS - self.first_weights
        return [
            *[(self.pixels.size, ROW_BYTES)] * self.first_pixels,
            *[(self.pixels.size, 4 * self.words)] * self.rows,
            *[(self.words, ROW_BYTES)] * weights,
        ]

    def _numbers(self, bundle: Any) -> list[Any]:
        """Numbers of the tiles of a bundle; the last one repeats the one before where there is none."""
        from tvm import tirx

        first = bundle * self.rows
        return [first, *(tirx.Min(first + index, int32(self.pixels.count - 1)) for index in range(1, self.rows))]

    def _first(self, number: Any) -> tuple[Any, Any]:
        """Row of all results and column of a tile's first pixel; row 0 where pixels are numbered through all rows."""
        from tvm import tirx

        pixels, (height, width) = self.pixels, self.work.result
        if pixels.parts:
            row, part = tirx.floordiv(number, int32(pixels.parts)), tirx.floormod(number, int32(pixels.parts))
            return row, tirx.Min(part * pixels.size, int32(width - pixels.size))
        total = ((self.work.batch - 1) * pixels.rows + height - 1) * pixels.pitch + width
        return int32(0), tirx.Min(number * pixels.size, int32(total - pixels.size))

    def _begin(self, number: Any) -> Any:
        """From the copy's first word to the first that a tile's first pixel reads."""
        (down, right), image = self.work.strides, self.image
        row, column = self._first(number)
        begin = column * (right * image.pixel)
        if not self.pixels.parts:
            return begin
        batch, line = self._split(row, self.work.result[0])
        return begin + batch * image.batch + line * (down * image.row)

    def _sum_up(self, group: Any, numbers: list[Any], into: tuple[Any, Any]) -> None:
        """The whole reduction of a bundle of tiles, into memory."""
        emitter, runs, image = self.emitter, self.runs, self.image
        begins = [emitter.let(self._begin(number) + int32(0)) for number in numbers]
        for index in range(self.first_pixels):
            # Every pixel begins with the bias: rows that are no distance apart.
            load_tile(emitter, index, address(self.bias, (group * self.q + index % self.q) * LANES), 0)
        chunks = runs.words // self.words
        weights = emitter.let(group * (self.q * LANES * runs.total_words) + int32(0))
        down, right = self.work.dilations
        with emitter.loop(runs.blocks) as block, emitter.loop(runs.rows) as row, emitter.loop(runs.taps) as tap:
            source = block * image.block + row * (down * image.row) + tap * (right * image.pixel)
            step = ((block * runs.rows + row) * runs.taps + tap) * chunks
            with emitter.loop(chunks) as chunk:
                at = [begin + source + chunk * self.words for begin in begins]
                self._multiply(at, weights + (step + chunk) * (self.q * self.words * LANES))
        sums, half = into
        for index in range(self.first_pixels):
            store_tile(emitter, index, address(sums, half + index * self.pixels.size))

    def _multiply(self, places: list[Any], weights: Any) -> None:
        """One part of a run of each pixel."""
        emitter, size = self.emitter, self.words * LANES
        distance = 4 * self.work.strides[1] * self.image.pixel
        for index, place in enumerate(places):
            load_tile(emitter, self.first_pixels + index, address(self.source, place), distance)
        for number in range(self.q):
            register = self.first_weights + number % (REGISTERS - self.first_weights)
            load_tile(emitter, register, address(self.weights, weights + number * size), ROW_BYTES)
            for index in range(self.rows):
                add_products(emitter, "tdpbf16ps", index * self.q + number, self.first_pixels + index, register)

    def _finish(self, group: Any, number: Any, sums: tuple[Any, Any]) -> None:
        """The epilogue of one tile of pixels, and its results."""
        from tvm import tirx

        emitter, (height, width) = self.emitter, self.work.result
        row, column = (emitter.let(value + int32(0)) for value in self._first(number))
        with emitter.loop(self.pixels.size) as pixel:
            place = emitter.let(column + pixel)
            line, x, inside = row, place, None
            if not self.pixels.parts:
                line = emitter.let(tirx.floordiv(place, int32(self.pixels.pitch)))
                x = emitter.let(place - line * self.pixels.pitch)
                inside = x < width
            batch, y = self._split(line, self.pixels.rows or height)
            if inside is not None and self.work.batch > 1:
                inside = tirx.all(inside, y < height)
            with emitter.when(inside):
                self._store(sums, group, pixel, (batch, y, x))

    def _split(self, line: Any, rows: int) -> tuple[Any, Any]:
        """Image and row in it of a row of all results."""
        from tvm import tirx

        if self.work.batch == 1:
            return int32(0), line
        return tirx.floordiv(line, int32(rows)), tirx.floormod(line, int32(rows))

    def _store(self, sums: tuple[Any, Any], group: Any, pixel: Any, at: tuple[Any, Any, Any]) -> None:
        """The results of one pixel."""
        (buffer, begin), (height, width), (batch, y, x) = sums, self.work.result, at
        for index in range(self.q):
            total, block = load(buffer, begin + index * self.pixels.size + pixel, 1), group * self.q + index
            if self.work.layout == "rows":
                self._store_row(total, block, x)
                continue
            place = (((batch * self.out_blocks + block) * height + y) * width + x) * LANES
            self._write(total, self.emitter.let(place + int32(0)), LANES)

    def _store_row(self, total: Any, block: Any, x: Any) -> None:
        """A vector of a row of results; the last one of a row may be cut off."""
        whole, rest = divmod(self.work.filters, LANES)
        place = self.emitter.let(x * self.work.filters + block * LANES)
        with self.emitter.when(block < whole if rest else None):
            self._write(total, place, LANES)
        if rest:
            with self.emitter.when(block >= whole):
                self._write(total, place, rest)

    def _write(self, total: Any, place: Any, count: int) -> None:
        added = None if self.residual is None else self._some(self.residual, place, count)
        value = finish(self.emitter, total, self.work.epilogue, added, lanes=LANES, dtype="float32")
        if count == LANES:
            self.emitter.add(store(self.result, place, value, LANES))
            return
        vector = self.emitter.let(value)
        for index in range(count):
            self.emitter.add(store(self.result, place + index, lane(vector, index), 1))

    def _some(self, buffer: Any, at: Any, count: int) -> Any:
        """A vector of which only the elements that exist are read."""
        if count == LANES:
            return load(buffer, at, LANES)
        return gather([load(buffer, at + min(index, count - 1), 1) for index in range(LANES)])
