"""What layers read on calibration data, as second moments: gathered for many layers while the data go by once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.rows import Layer, Matrix, sample_rows
from compiler.compress.prune.tap import watch
from compiler.model.numerics import Array, Arrays

Batches = Callable[[], Iterable[Arrays]]
"""Gives the calibration data from the start, as often as it is called; at least two batches."""

PER_ITEM = 24
"""Places of one image that a layer is looked at."""


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer's inputs, about their mean where its bias takes that up.

    Args:
        halves: Of every other batch, and of the rest (K, K).
        rows: Rows they are of.
    """

    halves: tuple[Matrix, Matrix]
    rows: int


class _Sums:
    """The moments of one layer while data go by."""

    def __init__(self, size: int) -> None:
        self.squares = [np.zeros((size, size)), np.zeros((size, size))]
        self.totals, self.rows = [np.zeros(size), np.zeros(size)], [0, 0]

    def add(self, half: int, x: Matrix) -> None:
        self.squares[half] += x.T @ x
        self.totals[half] += x.sum(axis=0)
        self.rows[half] += len(x)

    def moments(self, *, centred: bool) -> Moments:
        first, second = self.squares
        if centred:
            first, second = (
                one - np.outer(mean, mean) / max(1, count)
                for one, mean, count in zip(self.squares, self.totals, self.rows, strict=True)
            )
        return Moments((first, second), sum(self.rows))


def gather_moments(model: ir.Model, layers: Sequence[Layer], batches: Batches) -> dict[str, Moments]:
    """Name of a layer's weights → the moments of what it reads.

    Args:
        model: The model the layers are of.
        layers: The layers; one that is named twice is gathered once.
        batches: Calibration data, read once.
    """
    found = {layer.weights: layer for layer in layers}
    names = list(dict.fromkeys(name for layer in found.values() for name in (layer.source, layer.node)))
    sums: dict[str, _Sums] = {}
    random = np.random.default_rng(0)
    for index, values in enumerate(watch(model, names, batches()) if names else ()):
        given = dict(zip(names, values, strict=True))
        for weights, layer in found.items():
            x = _rows(layer, given, random)
            sums.setdefault(weights, _Sums(x.shape[1])).add(index % 2, x)
    return {weights: one.moments(centred=bool(found[weights].bias)) for weights, one in sums.items()}


def _rows(layer: Layer, given: dict[str, Array], random: np.random.Generator) -> Matrix:
    return sample_rows(layer, given[layer.source], given[layer.node], per_item=PER_ITEM, random=random)[0]
