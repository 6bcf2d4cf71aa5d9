"""What kernels with products of bfloat16 share: a copy of the source in bfloat16, and the packing of their weights.

A word is two neighbouring inputs of a pixel. The copy has blocks of up to 32 channels, 16 words, or all of a planar
source's. Zeros behind a row are its right border and the left border of the next one; images of a batch lie below each
other in the same way. So each window reads for every row of it one run of words, at the same places from its first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from compiler.target import Array
from targets.arm_tvm.kernels.emitter import (
    PARALLEL_ELEMENTS,
    PARALLEL_WORK,
    Emitter,
    broadcast,
    gather,
    int32,
    load,
    shuffle,
    store,
)
from targets.arm_tvm.kernels.floating_point.sources import source_shape
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine
from targets.arm_tvm.kernels.runs import Runs, chunk_words

LANES = 16
"""Floats of a vector: of a block of channels outside, and the words of 32 channels."""
BFLOAT16 = "bfloat16"
WORD = 2
"""Inputs of a word."""

_CONVERT = """
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
define internal <16 x i32> @fleetc_to_bfloat16(<16 x float> %first, <16 x float> %second) alwaysinline {
  %rounded = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %second, <16 x float> %first)
  %words = bitcast <32 x bfloat> %rounded to <16 x i32>
  ret <16 x i32> %words
}
"""


@dataclass(frozen=True)
class Image:
    """How the copy lies in memory; sizes and distances in words.

    Args:
        blocks: Blocks of channels.
        pixel: From one pixel to the next.
        words: Of a pixel within a block; `pixel` too, but for matrices.
        row, batch, block: From one row, image and block of channels to the next.
        first: From the beginning to the first element of the source.
        size: Of the whole copy.
    """

    blocks: int
    pixel: int
    words: int
    row: int
    batch: int
    block: int
    first: int
    size: int


def applies(workload: ConvWorkload, machine: Machine) -> bool:
    """Whether a workload is to be computed so, in vectors of 16 float32."""
    return workload.weights == BFLOAT16 and machine.lanes("float32") == LANES


def image_of(work: ConvWorkload) -> Image:
    """How a workload's source is copied."""
    if work.layout == "rows":
        count = blocks(work.channels, 2 * LANES)
        return Image(count, count * LANES, LANES, 0, 0, LANES, 0, work.width * count * LANES)
    count, words = 1, blocks(work.channels, WORD)
    if work.layout == "blocked":
        count, words = blocks(work.channels, 2 * LANES), LANES if work.channels > LANES else LANES // 2
    top, left, bottom, right = work.padding
    row, height = _pitch(work, 1) * words, _pitch(work, 0)
    rows = (work.batch - 1) * height + top + work.height + bottom
    # The last vector of a row may go past its end.
    size = rows * row + (left + right) * words + LANES * words
    return Image(count, words, words, row, height * row, size, top * row + left * words, count * size)


def _pitch(work: ConvWorkload, axis: int) -> int:
    """Rows from image to image, or pixels from row to row: with room for the borders, and for as many results."""
    size, step = (work.height, work.width)[axis], work.strides[axis]
    least = max(size + work.padding[axis], size + work.padding[axis + 2], work.result[axis] * step)
    # Whole strides from image to image, so that rows of results go on at the same distance.
    return blocks(least, step) * step if axis == 0 else least


def runs_of(work: ConvWorkload) -> Runs:
    """What each pixel reads, in words of two inputs."""
    image, (height, width) = image_of(work), work.kernel
    if image.words < LANES and work.dilations[1] == 1:
        return Runs(image.blocks, height, 1, width * image.words)
    return Runs(image.blocks, height, width, image.words)


def weight_words(work: ConvWorkload) -> int:
    """Words of all packed weights."""
    return blocks(work.filters, LANES) * LANES * runs_of(work).total_words


def pack(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """Words of two weights: [group of blocks][source block][row][tap][part of a run][block][word][filter], flat."""
    image, runs, q = image_of(workload), runs_of(workload), choice.parameters["blocks"]
    depth, words = WORD * image.words, chunk_words(runs)
    full = np.zeros((blocks(workload.filters, LANES) * LANES, image.blocks * depth, *workload.kernel), np.float32)
    full[: workload.filters, : workload.channels] = weights
    inputs_last = full.reshape(-1, image.blocks, depth, *workload.kernel).transpose(0, 1, 3, 4, 2)
    chunks = runs.words // words
    tiled = inputs_last.reshape(-1, q, LANES, runs.blocks, runs.rows, runs.taps, chunks, words, WORD)
    ordered = np.ascontiguousarray(tiled.transpose(0, 3, 4, 5, 6, 1, 7, 2, 8))
    return ordered.astype(ml_dtypes.bfloat16).view(np.int32).ravel()


def copied(emitter: Emitter, work: ConvWorkload, source: Any) -> Any:
    """A buffer with the source as words of bfloat16, as `image_of` says."""
    image = image_of(work)
    buffer = emitter.allocate(image.size, "int32", "global")
    copy = _Copy(emitter, work, image, source, buffer)
    if work.layout == "rows":
        copy.matrix()
    elif work.layout == "planar":
        copy.planes()
    else:
        copy.blocks_of_channels()
    return buffer


def converted(emitter: Emitter, first: Any, second: Any) -> Any:
    """32 floats as 16 words, in their order; rounded to nearest, ties to even."""
    return emitter.call_defined("int32x16", "fleetc_to_bfloat16", _CONVERT, first, second)


@dataclass(frozen=True)
class _Copy:
    """A copy while it is written."""

    emitter: Emitter
    work: ConvWorkload
    image: Image
    source: Any
    buffer: Any

    def matrix(self) -> None:
        """Rows of a matrix, filled up to whole blocks."""
        whole, rest = divmod(self.work.channels, 2 * LANES)
        with self.emitter.loop(
            self.work.width, parallel=prod(source_shape(self.work, LANES)) > PARALLEL_ELEMENTS
        ) as row:
            with self.emitter.loop(whole) as block:
                at = row * self.work.channels + block * (2 * LANES)
                pair = [load(self.source, at + index * LANES, LANES) for index in range(2)]
                self._store(row * self.image.pixel + block * LANES, *pair)
            if rest:
                at = row * self.work.channels + whole * (2 * LANES)
                pair = [self._some(at + first, rest - first) for first in (0, LANES)]
                self._store(row * self.image.pixel + whole * LANES, *pair)

    def _some(self, at: Any, count: int) -> Any:
        """The next elements, as many as there are, and zeros."""
        if count >= LANES:
            return load(self.source, at, LANES)
        zero = broadcast(0.0, 1)
        return gather([load(self.source, at + index, 1) if index < count else zero for index in range(LANES)])

    def blocks_of_channels(self) -> None:
        """Pairs of blocks of 16 channels as one of 32."""
        given = blocks(self.work.channels, LANES)
        self._blocks(0, given // 2, alone=False)
        self._blocks(given // 2, given % 2, alone=True)

    def _blocks(self, first: int, count: int, *, alone: bool) -> None:
        work, given = self.work, blocks(self.work.channels, LANES)
        area = work.height * work.width
        heavy = count * area * work.batch > PARALLEL_WORK // 4
        with self.emitter.loop(count, parallel=heavy) as index:
            block, begin = index + first, self._borders(index + first)
            with self.emitter.loop(work.batch) as batch, self.emitter.loop(work.height) as row:
                into = begin + batch * self.image.batch + row * self.image.row
                at = ((batch * given + block * 2) * area + row * work.width) * LANES
                with self.emitter.loop(work.width) as column:
                    upper = broadcast(0.0, LANES) if alone else load(self.source, at + (column + area) * LANES, LANES)
                    self._store(into + column * self.image.pixel, load(self.source, at + column * LANES, LANES), upper)

    def _store(self, at: Any, first: Any, second: Any) -> None:
        words = converted(self.emitter, first, second)
        if self.image.words < LANES:
            words = shuffle([self.emitter.let(words)], range(self.image.words))
        self.emitter.add(store(self.buffer, at, words, self.image.words))

    def planes(self) -> None:
        """Planes as pixels whose channels are filled up to whole words."""
        work, image = self.work, self.image
        # Vectors of a row may end behind it: the zeros there come after them.
        with self.emitter.loop(work.batch) as batch, self.emitter.loop(work.height) as row:
            at = batch * (work.channels * work.height * work.width) + row * work.width
            into = image.first + batch * image.batch + row * image.row
            whole, rest = divmod(work.width, LANES)
            with self.emitter.loop(whole) as part:
                planes = [load(self.source, at + self._plane(c) + part * LANES, LANES) for c in range(work.channels)]
                self._pixels(into + part * (LANES * image.pixel), planes)
            if rest:
                last = at + whole * LANES
                planes = [self._some(last + self._plane(channel), rest) for channel in range(work.channels)]
                self._pixels(into + whole * LANES * image.pixel, planes)
        self._borders(int32(0))

    def _plane(self, channel: int) -> int:
        return channel * self.work.height * self.work.width

    def _pixels(self, at: Any, planes: list[Any]) -> None:
        """16 pixels: their channels beside each other."""
        from tvm import tirx

        words = self.image.words
        full = [*planes, *[broadcast(0.0, LANES)] * (WORD * words - len(planes))]
        pairs = [converted(self.emitter, *full[WORD * word : WORD * word + WORD]) for word in range(words)]
        halves = [self.emitter.let(tirx.reinterpret("int16x32", pair)) for pair in pairs]
        order = [
            2 * LANES * word + side * LANES + pixel
            for pixel in range(LANES)
            for word in range(words)
            for side in (0, 1)
        ]
        mixed = shuffle(halves, order)
        self.emitter.add(store(self.buffer, at, tirx.reinterpret(f"int32x{LANES * words}", mixed), LANES * words))

    def _borders(self, block: Any) -> Any:
        """Writes the zeros of a block, and returns where its first element is."""
        work, image = self.work, self.image
        begin, end = block * image.block, work.width * image.words
        self._zeros(begin, image.first)
        beside, below = image.row - end, image.batch - work.height * image.row
        if beside:
            with self.emitter.loop(work.batch) as batch, self.emitter.loop(work.height) as row:
                self._zeros(begin + image.first + batch * image.batch + row * image.row + end, beside)
        if below:
            with self.emitter.loop(work.batch - 1) as batch:
                self._zeros(begin + image.first + batch * image.batch + work.height * image.row, below)
        last = image.first + (work.batch - 1) * image.batch + work.height * image.row
        self._zeros(begin + last, image.block - last)
        return begin + image.first

    def _zeros(self, start: Any, words: int) -> None:
        whole, rest = divmod(words, LANES)
        with self.emitter.loop(whole) as at:
            self.emitter.add(store(self.buffer, start + at * LANES, broadcast(0, LANES, "int32"), LANES))
        for word in range(words - rest, words):
            self.emitter.add(store(self.buffer, start + word, int32(0), 1))
