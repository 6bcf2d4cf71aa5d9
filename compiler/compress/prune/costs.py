"""Cost of a model while channels are removed, computed without changing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from compiler.compress.prune.groups import Ties
from compiler.compress.prune.walk import Cut
from compiler.passes.macs import node_macs
from compiler.passes.values import display_name


@dataclass
class _Layer:
    """One layer: multiply-accumulates at full width, price, and original and remaining width of each axis."""

    macs: float
    price: float
    widths: list[int]
    kept: list[int]

    def share(self, gone: Mapping[int, int]) -> float:
        """The share of the work that remains when axes lose this many more channels."""
        return prod((kept - gone.get(axis, 0)) / self.widths[axis] for axis, kept in enumerate(self.kept))


class Costs:
    """Multiply-accumulates, and their cost on a device, of a model that loses channels.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        prices: Layer → price of one of its multiply-accumulates; 1 where it is not named.
    """

    def __init__(self, model: ir.Model, ties: Ties, prices: Mapping[str, float]) -> None:
        self._layers: list[_Layer] = []
        self._uses: dict[int, Counter[tuple[int, int]]] = {}
        self._made: dict[int, Counter[int]] = {}
        self._width: list[int] = []
        cuts: dict[str, list[Cut]] = {}
        for cut in ties.cuts:
            if cut.role != "follows" or cut.axis == 0:
                cuts.setdefault(cut.node, []).append(cut)
            if cut.role == "makes":
                self._note_maker(cut)
        for node in model.graph:
            if len(node.inputs) > 1 and node.inputs[1] is not None and (macs := node_macs(node)):
                name = display_name(node)
                own = [cut for cut in cuts.get(name, []) if cut.initializer == str(node.inputs[1].name)]
                self._note_layer(macs, prices.get(name, 1.0), own)

    @property
    def macs(self) -> float:
        """Remaining multiply-accumulates."""
        return sum(layer.macs * layer.share({}) for layer in self._layers)

    def saved(self, channels: Iterable[int]) -> float:
        """The cost that removing these channels saves: multiply-accumulates times prices."""
        hit: dict[int, Counter[int]] = {}
        for channel in channels:
            for (index, axis), count in self._uses.get(channel, Counter()).items():
                hit.setdefault(index, Counter())[axis] += count
        layers = ((self._layers[index], gone) for index, gone in hit.items())
        return sum(layer.macs * layer.price * (layer.share({}) - layer.share(gone)) for layer, gone in layers)

    def empties(self, channels: Iterable[int]) -> bool:
        """Whether a layer would lose its last output channel."""
        gone: Counter[int] = Counter()
        for channel in channels:
            gone.update(self._made.get(channel, Counter()))
        return any(self._width[maker] <= count for maker, count in gone.items())

    def take(self, channels: Iterable[int]) -> None:
        """Removes channels."""
        for channel in channels:
            for (index, axis), count in self._uses.get(channel, Counter()).items():
                self._layers[index].kept[axis] -= count
            for maker, count in self._made.get(channel, Counter()).items():
                self._width[maker] -= count

    def _note_layer(self, macs: int, price: float, cuts: list[Cut]) -> None:
        for axis, cut in enumerate(cuts):
            for channel in cut.ids.tolist():
                self._uses.setdefault(channel, Counter())[len(self._layers), axis] += 1
        widths = [len(cut.ids) for cut in cuts]
        self._layers.append(_Layer(macs, price, widths, [*widths]))

    def _note_maker(self, cut: Cut) -> None:
        for channel in cut.ids.tolist():
            self._made.setdefault(channel, Counter())[len(self._width)] += 1
        self._width.append(len(cut.ids))
