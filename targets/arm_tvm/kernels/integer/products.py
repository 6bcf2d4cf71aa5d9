"""How products of int8 are made and summed in registers, a class per kind of instruction; see `conv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast, cast, intrinsic, load, shuffle, store
from targets.arm_tvm.kernels.integer.specs import Dot
from targets.arm_tvm.kernels.integer.tiles import Tile


class Product:
    """Accumulators of one tile, and how products are added to them.

    Args:
        emitter: Takes the statements.
        tile: The tile.
        wide: Whether a weight is −128.
    """

    lanes = 4

    def __init__(self, emitter: Emitter, tile: Tile, wide: bool) -> None:
        self.emitter, self.tile, self.wide = emitter, tile, wide
        count = self.count()
        self.buffer = emitter.allocate(count * self.lanes, "int32", "global")
        for index in range(count):
            emitter.add(store(self.buffer, index * self.lanes, broadcast(0, self.lanes, "int32"), self.lanes))

    def count(self) -> int:
        """Number of accumulators."""
        return self.tile.groups * self.tile.pixels

    def add(self, inputs: list[Any], weight: Callable[[int], Any], lanes: int) -> None:
        """Adds the products of 4·`lanes` inputs per pixel with the weights that follow each other."""
        raise NotImplementedError

    def sums(self) -> list[list[Any]]:
        """For each pixel, for each group of four channels, the int32x4."""
        raise NotImplementedError

    def get(self, index: int) -> Any:
        """Reads an accumulator."""
        return load(self.buffer, index * self.lanes, self.lanes)

    def put(self, index: int, value: Any) -> None:
        """Writes an accumulator."""
        self.emitter.add(store(self.buffer, index * self.lanes, value, self.lanes))


class _Sdot(Product):
    def add(self, inputs: list[Any], weight: Callable[[int], Any], lanes: int) -> None:
        from tvm import tirx

        words = [self.emitter.let(tirx.reinterpret("int32x4", value)) for value in inputs]
        for lane in range(lanes):
            weights = [self.emitter.let(weight(lane * self.tile.groups + group)) for group in range(self.tile.groups)]
            for group, held in enumerate(weights):
                for pixel, word in enumerate(words):
                    index = group * self.tile.pixels + pixel
                    copied = tirx.reinterpret("int8x16", shuffle([word], [lane] * 4))
                    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
                    self.put(index, intrinsic("int32x4", name, self.get(index), held, copied))

    def sums(self) -> list[list[Any]]:
        tile = self.tile
        return [[self.get(group * tile.pixels + pixel) for group in range(tile.groups)] for pixel in range(tile.pixels)]


class _Smmla(Product):
    def count(self) -> int:
        return 2 * self.tile.groups * self._pairs()

    def _pairs(self) -> int:
        return -(-self.tile.pixels // 2)

    def add(self, inputs: list[Any], weight: Callable[[int], Any], lanes: int) -> None:
        # An odd last pixel is paired with itself; what its second half gives is never read.
        pairs = [(inputs[at], inputs[min(at + 1, len(inputs) - 1)]) for at in range(0, len(inputs), 2)]
        for half in range(lanes // 2):
            chosen = [*range(8 * half, 8 * half + 8), *range(16 + 8 * half, 24 + 8 * half)]
            mixed = [self.emitter.let(shuffle(pair, chosen)) for pair in pairs]
            for channels in range(2 * self.tile.groups):
                held = self.emitter.let(weight(half * 2 * self.tile.groups + channels))
                for pair, pixels in enumerate(mixed):
                    index = channels * self._pairs() + pair
                    name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
                    self.put(index, intrinsic("int32x4", name, self.get(index), pixels, held))

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

    def add(self, inputs: list[Any], weight: Callable[[int], Any], lanes: int) -> None:
        for channel in range(4 * self.tile.groups):
            held = self.emitter.let(weight(channel))
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
        if not self.wide:
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


def _quarter(vector: Any) -> Any:
    """int32x16 → int32x4 of the same sum."""
    half = shuffle([vector], range(8)) + shuffle([vector], range(8, 16))
    return shuffle([half], range(4)) + shuffle([half], range(4, 8))


def _summed(vectors: list[Any]) -> Any:
    """Four int32x4 → the int32x4 of their sums, by two levels of addp."""

    def pairwise(left: Any, right: Any) -> Any:
        return shuffle([left, right], (0, 2, 4, 6)) + shuffle([left, right], (1, 3, 5, 7))

    return pairwise(pairwise(*vectors[:2]), pairwise(*vectors[2:]))


PRODUCTS: dict[Dot, type[Product]] = {"sdot": _Sdot, "smmla": _Smmla, "widen": _Widen, "generic": _Generic}
"""How the machine multiplies → its accumulators."""
