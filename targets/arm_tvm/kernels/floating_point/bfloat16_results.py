"""Results of kernels with products of bfloat16: how they are divided among tiles, and how they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, gather, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point.bfloat16 import LANES, copied, image_of, runs_of, weight_words
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.floating_point.sources import result_shape, source_shape
from targets.arm_tvm.kernels.floating_point.workload import ConvWorkload, blocks
from targets.arm_tvm.kernels.runs import chunk_words


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


def pixels_of(work: ConvWorkload, most: int) -> Pixels:
    """How results are divided among tiles of at most so many: by rows, or through all of them if that takes fewer."""
    (height, width), (down, right), image = work.result, work.strides, image_of(work)
    parts = blocks(width, most)
    by_rows = Pixels(blocks(width, parts), parts * height * work.batch, parts, 0, height)
    if work.layout == "rows" or down * image.row % (right * image.pixel):
        return by_rows
    pitch, rows = down * image.row // (right * image.pixel), image.batch // (down * image.row)
    total = ((work.batch - 1) * rows + height - 1) * pitch + width
    count = blocks(total, most)
    return Pixels(blocks(total, count), count, 0, pitch, rows) if count < by_rows.count else by_rows


class Products:
    """A kernel while it is written: its operands, places of tiles, and results.

    Args:
        work: What it computes.
        blocks_of_group: Blocks of 16 filters that are computed together.
        pixels: Its tiles of pixels.
    """

    def __init__(self, work: ConvWorkload, blocks_of_group: int, pixels: Pixels) -> None:
        self.work, self.q, self.pixels, self.emitter = work, blocks_of_group, pixels, Emitter()
        self.image, self.runs, self.out_blocks = image_of(work), runs_of(work), blocks(work.filters, LANES)
        self.words = chunk_words(self.runs)
        source = self.emitter.parameter(source_shape(work, LANES), "float32", "x")
        self.weights = self.emitter.parameter((weight_words(work),), "int32", "w")
        self.bias = self.emitter.parameter((self.out_blocks * LANES,), "float32", "bias")
        shape = result_shape(work, LANES)
        self.residual = self.emitter.parameter(shape, "float32", "r") if "add" in work.epilogue else None
        self.result = self.emitter.parameter(shape, "float32", "y")
        self.source = copied(self.emitter, work, source)

    @property
    def groups(self) -> int:
        """Groups of blocks of filters."""
        return self.out_blocks // self.q

    def first_pixel(self, number: Any) -> tuple[Any, Any]:
        """Row of all results and column of a tile's first pixel; row 0 where pixels are numbered through all rows."""
        from tvm import tirx

        pixels, (height, width) = self.pixels, self.work.result
        if pixels.parts:
            row, part = tirx.floordiv(number, int32(pixels.parts)), tirx.floormod(number, int32(pixels.parts))
            return row, tirx.Min(part * pixels.size, int32(width - pixels.size))
        total = ((self.work.batch - 1) * pixels.rows + height - 1) * pixels.pitch + width
        return int32(0), tirx.Min(number * pixels.size, int32(total - pixels.size))

    def first_word(self, number: Any) -> Any:
        """From the copy's first word to the first that a tile's first pixel reads."""
        (down, right), image = self.work.strides, self.image
        row, column = self.first_pixel(number)
        begin = column * (right * image.pixel)
        if not self.pixels.parts:
            return begin
        batch, line = self._split(row, self.work.result[0])
        return begin + batch * image.batch + line * (down * image.row)

    def first_weight(self, group: Any) -> Any:
        """Offset of a group's weights, in words."""
        return group * (self.q * LANES * self.runs.total_words)

    def place_of_run(self, block: Any, row: Any, tap: Any) -> tuple[Any, Any]:
        """Of a run of words: where it is from the first of its window, and its number in the order of the weights."""
        (down, right), runs = self.work.dilations, self.runs
        place = block * self.image.block + row * (down * self.image.row) + tap * (right * self.image.pixel)
        return place, (block * runs.rows + row) * runs.taps + tap

    def _split(self, line: Any, rows: int) -> tuple[Any, Any]:
        """Image and row in it of a row of all results."""
        from tvm import tirx

        if self.work.batch == 1:
            return int32(0), line
        return tirx.floordiv(line, int32(rows)), tirx.floormod(line, int32(rows))

    def store_pixel(self, totals: Sequence[Any], group: Any, first: tuple[Any, Any], pixel: Any) -> None:
        """The epilogue and the results of one pixel of a tile, unless it lies across an edge.

        Args:
            totals: Its sums, a vector for each block of the group.
            group: Number of the group.
            first: What `first_pixel` gives for the tile.
            pixel: Number of the pixel in it.
        """
        from tvm import tirx

        emitter, (row, column), (height, width) = self.emitter, first, self.work.result
        x, line, inside = emitter.let(column + pixel), row, None
        if not self.pixels.parts:
            place = x
            line = emitter.let(tirx.floordiv(place, int32(self.pixels.pitch)))
            x = emitter.let(place - line * self.pixels.pitch)
            inside = x < width
        batch, y = self._split(line, self.pixels.rows or height)
        if inside is not None and self.work.batch > 1:
            inside = tirx.all(inside, y < height)
        with emitter.when(inside):
            self._store(totals, group, (batch, y, x))

    def _store(self, totals: Sequence[Any], group: Any, at: tuple[Any, Any, Any]) -> None:
        (height, width), (batch, y, x) = self.work.result, at
        for index, total in enumerate(totals):
            block = group * self.q + index
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
