"""Convolutions and products in AMX's tiles: 16 × 16 sums in float32 of products of rows of up to 32 bfloat16.

Tiling: `rows` tiles of pixels × `blocks` of 16 filters are tiles of sums that stay in registers over the whole
reduction. A row of a pixel's tile is a part of what its window has in one row: tileloadd takes neighbouring pixels by
their distance in memory, so nothing is gathered. Pixels are numbered through all rows and images where that takes
fewer tiles: those that lie across an edge are computed and not stored. The last tile overlaps the one before it.

Roofline: tdpbf16ps takes as many cycles as the longer of pixels and words of a row, for 16 filters, at best 512
products a cycle. On small maps the weights are read once for each tile of pixels, and are what takes the time: they
come from the third-level cache or memory, where asking for them ahead of their use brought nothing.
"""

from __future__ import annotations

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
from targets.arm_tvm.kernels.emitter import address, int32, load
from targets.arm_tvm.kernels.floating_point.bfloat16 import LANES, applies, pack, runs_of, weight_words
from targets.arm_tvm.kernels.floating_point.bfloat16_results import Products, pixels_of
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Bfloat16, Machine
from targets.arm_tvm.kernels.runs import chunk_words

__all__ = ["choices", "emit", "pack"]

TILES = ((2, 2), (1, 4), (1, 3), (1, 2), (2, 1), (1, 1))
"""Tiles of pixels × of filters that the registers have room for."""
SEGMENT = 8
"""Bundles of tiles between two settings of the tiles' shapes, which take the time of some products."""
PARALLEL_CYCLES = 1 << 15
"""Cycles of a kernel below which other threads are not started: some microseconds."""
WEIGHT_CYCLES, LOOP_CYCLES = 8, 5
"""Of a tile of weights, which comes from the second-level cache, and of an iteration; fitted to kernels of 11 · 10⁶
products on a Sapphire Rapids, where 2 × 2 tiles take 0.8 of the time of 1 × 4, and twice that of 1 × 2."""
INSTRUCTIONS = 2.0
"""That other kernels execute in a cycle: what costs are compared in."""


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Tiles that fit, the cheapest first; none where the machine has no AMX or the workload does not fit it.

    Args:
        workload: What is computed.
        machine: Where.
        like: The choice for the same weights whose packing must do; None: any packing.
    """
    if machine.bfloat16 is not Bfloat16.AMX or not applies(workload, machine):
        return ()
    size, pixels = 4 * weight_words(workload), pixels_of(workload, LANES)
    fitting = [
        Choice("amx_bf16", {"rows": rows, "blocks": q}, _cost(workload, machine, rows, q), size)
        for rows, q in TILES
        if blocks(workload.filters, LANES) % q == 0 and rows <= pixels.count
        if like is None or q == like.parameters["blocks"]
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost))


def _cost(work: ConvWorkload, machine: Machine, rows: int, q: int) -> float:
    pixels, runs = pixels_of(work, LANES), runs_of(work)
    step = LANES * rows * q + WEIGHT_CYCLES * q + LOOP_CYCLES
    groups = blocks(pixels.count, rows) * blocks(work.filters, LANES) // q
    stored = groups * rows * q * pixels.size * (2 + len(work.epilogue))
    steps = groups * runs.total_words // chunk_words(runs)
    return steps * step * INSTRUCTIONS + stored + machine.streaming_cost(2 * weight_words(work), work.weights)


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Tiled(workload, choice).function()


class _Tiled(Products):
    """One kernel while it is written."""

    def __init__(self, work: ConvWorkload, choice: Choice) -> None:
        super().__init__(work, choice.parameters["blocks"], pixels_of(work, LANES))
        self.rows = choice.parameters["rows"]
        self.first_pixels = self.rows * self.q
        self.first_weights = self.first_pixels + self.rows

    def function(self) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        emitter, bundles = self.emitter, blocks(self.pixels.count, self.rows)
        segments = blocks(bundles, SEGMENT)
        cycles = self.groups * bundles * self.first_pixels * LANES * self.runs.total_words // self.words
        with emitter.loop(self.groups * segments, parallel=cycles > PARALLEL_CYCLES) as part:
            # Filters outermost: their weights stay in the cache while the images pass.
            group, segment = tirx.floordiv(part, int32(segments)), tirx.floormod(part, int32(segments))
            rest = bundles if segments == 1 else tirx.Min(int32(SEGMENT), int32(bundles) - segment * SEGMENT)
            self._segment(group, segment * SEGMENT, rest)
        return emitter.function()

    def _segment(self, group: Any, first: Any, count: Any) -> None:
        """Some bundles of tiles; one is finished while the next is summed up, in two halves of a buffer."""
        from tvm import tirx

        emitter, half = self.emitter, self.first_pixels * self.pixels.size
        set_shapes(emitter, self._shapes())
        sums = emitter.allocate(2 * half, "float32x16", "local")
        with emitter.loop(count + 1) as bundle:
            with emitter.when(bundle < count):
                self._sum_up(group, self._numbers(first + bundle), (sums, tirx.bitwise_and(bundle, 1) * half))
            with emitter.when(bundle > 0):
                begin = tirx.bitwise_and(bundle + 1, 1) * half
                for index, number in enumerate(self._numbers(first + bundle - 1)):
                    self._finish(group, number, (sums, begin + index * self.q * self.pixels.size))
        release_tiles(emitter)

    def _shapes(self) -> list[tuple[int, int]]:
        return [
            *[(self.pixels.size, ROW_BYTES)] * self.first_pixels,
            *[(self.pixels.size, 4 * self.words)] * self.rows,
            *[(self.words, ROW_BYTES)] * (REGISTERS - self.first_weights),
        ]

    def _numbers(self, bundle: Any) -> list[Any]:
        """Numbers of the tiles of a bundle; the last one repeats the one before where there is none."""
        from tvm import tirx

        first = bundle * self.rows
        return [first, *(tirx.Min(first + index, int32(self.pixels.count - 1)) for index in range(1, self.rows))]

    def _sum_up(self, group: Any, numbers: list[Any], into: tuple[Any, Any]) -> None:
        """The whole reduction of a bundle of tiles, into memory."""
        emitter, runs = self.emitter, self.runs
        begins = [emitter.let(self.first_word(number) + int32(0)) for number in numbers]
        for index in range(self.first_pixels):
            # Every pixel begins with the bias: rows that are no distance apart.
            load_tile(emitter, index, address(self.bias, (group * self.q + index % self.q) * LANES), 0)
        chunks, weights = runs.words // self.words, emitter.let(self.first_weight(group) + int32(0))
        with emitter.loop(runs.blocks) as block, emitter.loop(runs.rows) as row, emitter.loop(runs.taps) as tap:
            source, step = self.place_of_run(block, row, tap)
            with emitter.loop(chunks) as chunk:
                at = [begin + source + chunk * self.words for begin in begins]
                self._multiply(at, weights + (step * chunks + chunk) * (self.q * self.words * LANES))
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
            # One tile of pixels × four of filters leave three registers for weights: they take turns.
            register = self.first_weights + number % (REGISTERS - self.first_weights)
            load_tile(emitter, register, address(self.weights, weights + number * size), ROW_BYTES)
            for index in range(self.rows):
                add_products(emitter, "tdpbf16ps", index * self.q + number, self.first_pixels + index, register)

    def _finish(self, group: Any, number: Any, sums: tuple[Any, Any]) -> None:
        """The results of one tile of pixels."""
        row, column = (self.emitter.let(value + int32(0)) for value in self.first_pixel(number))
        buffer, begin = sums
        with self.emitter.loop(self.pixels.size) as pixel:
            totals = [load(buffer, begin + index * self.pixels.size + pixel, 1) for index in range(self.q)]
            self.store_pixel(totals, group, (row, column), pixel)
