"""Convolutions and products by vdpbf16ps: 16 sums in float32, each of two products of bfloat16.

Tiling: `blocks` of 16 filters × `pixels` of sums stay in registers over the whole reduction. A word of a pixel, two of
its inputs, is broadcast from memory and multiplied by a vector of each block's weights. Pixels are numbered as for AMX.

Registers: blocks · pixels sums, the weights of the blocks, and the word in use. Instructions per word: blocks · pixels
products, as many loads as there are pixels and blocks.
Roofline: 32 products an instruction.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, broadcast, int32, load, store
from targets.arm_tvm.kernels.floating_point.bfloat16 import LANES, applies, pack, runs_of, weight_words
from targets.arm_tvm.kernels.floating_point.bfloat16_results import Products, pixels_of
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Bfloat16, Machine

__all__ = ["choices", "emit", "pack"]

MAX_CHOICES = 12
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
MAX_BLOCKS, MAX_PIXELS = 4, 16
"""Of one tile: they bound the search, and the code that is written out."""
LOOP_OVERHEAD, TILE_OVERHEAD = 3, 16
"""Instructions of one word, and of one tile, that are neither loads nor products nor stores."""
_MULTIPLY = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define internal <16 x float> @fleetc_add_products(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %l = bitcast <16 x i32> %a to <32 x bfloat>
  %r = bitcast <16 x i32> %b to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %l, <32 x bfloat> %r)
  ret <16 x float> %sum
}
"""


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Register tiles that fit, the cheapest first; none where the machine multiplies otherwise.

    Args:
        workload: What is computed.
        machine: Where.
        like: The choice for the same weights whose packing must do; None: any packing.
    """
    if machine.bfloat16 is not Bfloat16.AVX512 or not applies(workload, machine):
        return ()
    size = 4 * weight_words(workload)
    fitting = [
        Choice("avx512_bf16", {"blocks": q, "pixels": pixels}, _cost(workload, machine, q, pixels), size)
        for q in range(1, MAX_BLOCKS + 1)
        if blocks(workload.filters, LANES) % q == 0
        if like is None or q == like.parameters["blocks"]
        for pixels in sorted({pixels_of(workload, most).size for most in range(1, MAX_PIXELS + 1)})
        if q * pixels + q + 1 <= machine.registers
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost)[:MAX_CHOICES])


def _cost(work: ConvWorkload, machine: Machine, q: int, size: int) -> float:
    pixels = pixels_of(work, size)
    tiles = pixels.count * blocks(work.filters, LANES) // q
    word = q * pixels.size + pixels.size + q + LOOP_OVERHEAD
    stored = pixels.size * q * (2 + len(work.epilogue)) + TILE_OVERHEAD
    streamed = machine.streaming_cost(2 * weight_words(work), work.weights)
    return tiles * (runs_of(work).total_words * word + stored) + streamed


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Vectors(workload, choice).function()


class _Vectors(Products):
    """One kernel while it is written."""

    def __init__(self, work: ConvWorkload, choice: Choice) -> None:
        super().__init__(work, choice.parameters["blocks"], pixels_of(work, choice.parameters["pixels"]))

    def function(self) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        emitter, count = self.emitter, self.pixels.count
        heavy = self.groups * count * self.q * self.pixels.size * self.runs.total_words > PARALLEL_WORK
        with emitter.loop(self.groups * count, parallel=heavy) as part:
            # Filters outermost: their weights stay in the cache while the images pass.
            group, number = tirx.floordiv(part, int32(count)), tirx.floormod(part, int32(count))
            self._tile(emitter.let(group + int32(0)), emitter.let(number + int32(0)))
        return emitter.function()

    def _tile(self, group: Any, number: Any) -> None:
        emitter, size = self.emitter, self.pixels.size
        sums = emitter.allocate(self.q * size, "float32x16")
        for index in range(self.q):
            bias = emitter.let(load(self.bias, (group * self.q + index) * LANES, LANES))
            for pixel in range(size):
                emitter.add(store(sums, pixel * self.q + index, bias, 1))
        self._sum_up(sums, group, number)
        first = self.first_pixel(number)
        for pixel in range(size):
            totals = [load(sums, pixel * self.q + index, 1) for index in range(self.q)]
            self.store_pixel(totals, group, first, pixel)

    def _sum_up(self, sums: Any, group: Any, number: Any) -> None:
        """The whole reduction of a tile, word by word: a longer body would make LLVM spill sums."""
        emitter, runs = self.emitter, self.runs
        begin = emitter.let(self.first_word(number) + int32(0))
        weights, distance = emitter.let(self.first_weight(group) + int32(0)), self.work.strides[1] * self.image.pixel
        chunks = runs.words // self.words
        with emitter.loop(runs.blocks) as block, emitter.loop(runs.rows) as row, emitter.loop(runs.taps) as tap:
            source, step = self.place_of_run(block, row, tap)
            with emitter.loop(chunks) as chunk, emitter.loop(self.words) as word:
                place = begin + source + chunk * self.words + word
                at = weights + ((step * chunks + chunk) * (self.q * self.words) + word) * LANES
                factors = [load(self.weights, at + index * (self.words * LANES), LANES) for index in range(self.q)]
                self._multiply(sums, [place + pixel * distance for pixel in range(self.pixels.size)], factors)

    def _multiply(self, sums: Any, places: list[Any], factors: list[Any]) -> None:
        emitter = self.emitter
        vectors = [emitter.let(factor) for factor in factors]
        for pixel, place in enumerate(places):
            word = emitter.let(broadcast(load(self.source, place, 1), LANES))
            for index, vector in enumerate(vectors):
                at = pixel * self.q + index
                total = (load(sums, at, 1), word, vector)
                value = emitter.call_defined("float32x16", "fleetc_add_products", _MULTIPLY, *total)
                emitter.add(store(sums, at, value, 1))
