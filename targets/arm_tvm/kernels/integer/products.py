"""How products of int8 are made and summed in registers, a class per kind of instruction; see `conv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast, cast, intrinsic, load, shuffle, store
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot
from targets.arm_tvm.kernels.integer.tiles import Tile
from targets.arm_tvm.kernels.integer.vectors import vectors_of


@dataclass(frozen=True)
class Operands:
    """What a convolution multiplies.

    Args:
        source: Buffer of the activations.
        weights: Buffer of the packed weights.
        start: Buffer of what sums begin with, int32 for each output channel; None: 0.
        wide: Whether a weight is −128.
    """

    source: Any
    weights: Any
    start: Any
    wide: bool


PRODUCT_NAMES: dict[Dot, str] = {
    "sdot": "llvm.aarch64.neon.sdot.v4i32.v16i8",
    "smmla": "llvm.aarch64.neon.smmla.v4i32.v16i8",
    "avx512_vnni": "llvm.x86.avx512.vpdpbusd.512",
    # One name for the encodings of AVX-VNNI and AVX-512: LLVM takes the one that the core has.
    "avx_vnni": "llvm.x86.avx512.vpdpbusd.256",
}
"""LLVM's names of dot products."""


class Product:
    """Accumulators of one tile, and how products are added to them.

    Args:
        emitter: Takes the statements.
        tile: The tile.
        operands: Where the factors lie.
        channel: The tile's first output channel.
    """

    lanes = 4

    def __init__(self, emitter: Emitter, tile: Tile, operands: Operands, channel: Any) -> None:
        self.emitter, self.tile, self.operands = emitter, tile, operands
        count = self.count()
        self.buffer = emitter.allocate(count * self.lanes, "int32", "global")
        for index, value in enumerate(self.first(channel)):
            self.put(index, value)

    def count(self) -> int:
        """Number of accumulators."""
        return self.tile.groups * self.tile.pixels

    def first(self, channel: Any) -> Iterator[Any]:
        """What each accumulator begins with."""
        del channel
        return (broadcast(0, self.lanes, "int32") for _ in range(self.count()))

    def add(self, places: list[Any], at: Any, lanes: int) -> None:
        """Adds the products of 4·`lanes` inputs per pixel.

        Args:
            places: Where the inputs of each pixel begin.
            at: Where their weights begin.
            lanes: Fours of inputs.
        """
        raise NotImplementedError

    def sums(self) -> list[list[Any]]:
        """For each pixel, for each vector of output channels, the int32."""
        raise NotImplementedError

    def inputs(self, places: list[Any]) -> list[Any]:
        """16 inputs of every pixel, in registers."""
        return [self.emitter.let(load(self.operands.source, place, BLOCK)) for place in places]

    def weight(self, at: Any, index: int) -> Any:
        """16 of the weights that follow each other from `at` on."""
        return self.emitter.let(load(self.operands.weights, at + index * BLOCK, BLOCK))

    def get(self, index: int) -> Any:
        """Reads an accumulator."""
        return load(self.buffer, index * self.lanes, self.lanes)

    def put(self, index: int, value: Any) -> None:
        """Writes an accumulator."""
        self.emitter.add(store(self.buffer, index * self.lanes, value, self.lanes))


class _Sdot(Product):
    def add(self, places: list[Any], at: Any, lanes: int) -> None:
        from tvm import tirx

        words = [self.emitter.let(tirx.reinterpret("int32x4", value)) for value in self.inputs(places)]
        for lane in range(lanes):
            weights = [self.weight(at, lane * self.tile.groups + group) for group in range(self.tile.groups)]
            for group, held in enumerate(weights):
                for pixel, word in enumerate(words):
                    index = group * self.tile.pixels + pixel
                    copied = tirx.reinterpret("int8x16", shuffle([word], [lane] * 4))
                    self.put(index, intrinsic("int32x4", PRODUCT_NAMES["sdot"], self.get(index), held, copied))

    def sums(self) -> list[list[Any]]:
        tile = self.tile
        return [[self.get(group * tile.pixels + pixel) for group in range(tile.groups)] for pixel in range(tile.pixels)]


class _Smmla(Product):
    def count(self) -> int:
        return 2 * self.tile.groups * self._pairs()

    def _pairs(self) -> int:
        return -(-self.tile.pixels // 2)

    def add(self, places: list[Any], at: Any, lanes: int) -> None:
        inputs = self.inputs(places)
        # An odd last pixel is paired with itself; what its second half gives is never read.
        pairs = [(inputs[at], inputs[min(at + 1, len(inputs) - 1)]) for at in range(0, len(inputs), 2)]
        for half in range(lanes // 2):
            chosen = [*range(8 * half, 8 * half + 8), *range(16 + 8 * half, 24 + 8 * half)]
            mixed = [self.emitter.let(shuffle(pair, chosen)) for pair in pairs]
            for channels in range(2 * self.tile.groups):
                held = self.weight(at, half * 2 * self.tile.groups + channels)
                for pair, pixels in enumerate(mixed):
                    index = channels * self._pairs() + pair
                    self.put(index, intrinsic("int32x4", PRODUCT_NAMES["smmla"], self.get(index), pixels, held))

    def sums(self) -> list[list[Any]]:
        results = []
        for pixel in range(self.tile.pixels):
            pair, lanes = pixel // 2, ([0, 1, 4, 5], [2, 3, 6, 7])[pixel % 2]
            pairs = [range(2 * group, 2 * group + 2) for group in range(self.tile.groups)]
            quads = [shuffle([self.get(half * self._pairs() + pair) for half in both], lanes) for both in pairs]
            results.append(quads)
        return results


class _Widen(Product):
    def count(self) -> int:
        return 4 * self.tile.groups * self.tile.pixels

    def add(self, places: list[Any], at: Any, lanes: int) -> None:
        inputs = self.inputs(places)
        for channel in range(4 * self.tile.groups):
            held = self.weight(at, channel)
            for pixel, value in enumerate(inputs):
                index = channel * self.tile.pixels + pixel
                self.put(index, self.accumulated(self.get(index), held, value))

    def accumulated(self, total: Any, left: Any, right: Any) -> Any:
        """The accumulator with 16 products more."""
        halves = [
            cast("int16x8", shuffle([left], lanes)) * cast("int16x8", shuffle([right], lanes))
            for lanes in (range(8), range(8, 16))
        ]
        name = "llvm.aarch64.neon.saddlp.v4i32.v8i16"
        # 2 · 127 · 128 = 32512 fits int16; with a weight of −128 it could be 32768, which does not.
        if not self.operands.wide:
            return total + intrinsic("int32x4", name, halves[0] + halves[1])
        return total + intrinsic("int32x4", name, halves[0]) + intrinsic("int32x4", name, halves[1])

    def sums(self) -> list[list[Any]]:
        tile = self.tile
        return [
            [
                _summed([self.get((4 * group + channel) * tile.pixels + pixel) for channel in range(4)])
                for group in range(tile.groups)
            ]
            for pixel in range(tile.pixels)
        ]


class _Generic(_Widen):
    lanes = 16

    def accumulated(self, total: Any, left: Any, right: Any) -> Any:
        return total + cast("int32x16", left) * cast("int32x16", right)

    def sums(self) -> list[list[Any]]:
        tile = self.tile
        return [
            [
                _summed([_quarter(self.get((4 * group + channel) * tile.pixels + pixel)) for channel in range(4)])
                for group in range(tile.groups)
            ]
            for pixel in range(tile.pixels)
        ]


class _Vnni(Product):
    """vpdpbusd: four unsigned inputs from memory, the same for all lanes, times four signed weights in each lane."""

    dot: Dot

    def __init__(self, emitter: Emitter, tile: Tile, operands: Operands, channel: Any) -> None:
        self.lanes = vectors_of(self.dot).lanes
        self.columns = 4 * tile.groups // self.lanes
        super().__init__(emitter, tile, operands, channel)

    def count(self) -> int:
        return self.columns * self.tile.pixels

    def first(self, channel: Any) -> Iterator[Any]:
        starts = [
            self.emitter.let(load(self.operands.start, channel + column * self.lanes, self.lanes))
            for column in range(self.columns)
        ]
        return (start for _ in range(self.tile.pixels) for start in starts)

    def add(self, places: list[Any], at: Any, lanes: int) -> None:
        from tvm import tirx

        size = 4 * self.lanes
        for lane in range(lanes):
            first = at + lane * self.columns * size
            weights = [
                self.emitter.let(load(self.operands.weights, first + column * size, size))
                for column in range(self.columns)
            ]
            # One pixel after the other: its inputs are in a register only until they are multiplied.
            for pixel, place in enumerate(places):
                word = tirx.reinterpret("int32", load(self.operands.source, place + 4 * lane, 4))
                inputs = self.emitter.let(tirx.reinterpret(f"uint8x{size}", broadcast(word, self.lanes)))
                for column, held in enumerate(weights):
                    index = pixel * self.columns + column
                    self.put(
                        index, intrinsic(f"int32x{self.lanes}", PRODUCT_NAMES[self.dot], self.get(index), inputs, held)
                    )

    def sums(self) -> list[list[Any]]:
        return [
            [self.get(pixel * self.columns + column) for column in range(self.columns)]
            for pixel in range(self.tile.pixels)
        ]


class _Avx512Vnni(_Vnni):
    dot: Dot = "avx512_vnni"


class _AvxVnni(_Vnni):
    dot: Dot = "avx_vnni"


def _quarter(vector: Any) -> Any:
    """int32x16 → int32x4 of the same sum."""
    half = shuffle([vector], range(8)) + shuffle([vector], range(8, 16))
    return shuffle([half], range(4)) + shuffle([half], range(4, 8))


def _summed(vectors: list[Any]) -> Any:
    """Four int32x4 → the int32x4 of their sums, by two levels of addp."""

    def pairwise(left: Any, right: Any) -> Any:
        return shuffle([left, right], (0, 2, 4, 6)) + shuffle([left, right], (1, 3, 5, 7))

    return pairwise(pairwise(*vectors[:2]), pairwise(*vectors[2:]))


PRODUCTS: dict[Dot, type[Product]] = {
    "sdot": _Sdot,
    "smmla": _Smmla,
    "widen": _Widen,
    "generic": _Generic,
    "avx512_vnni": _Avx512Vnni,
    "avx_vnni": _AvxVnni,
}
"""How the machine multiplies → its accumulators."""
