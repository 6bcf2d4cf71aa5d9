"""Second moments of layers' inputs on calibration data, for many layers in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.rows import Layer, Matrix, sample_rows
from compiler.compress.prune.tap import watch
from compiler.model.numerics import Array, Arrays

Batches = Callable[[], Iterable[Arrays]]
"""Returns an iterator over the calibration data, at least two batches; may be called several times."""

PER_ITEM = 24
"""Positions of one image that are sampled per layer: neighbouring windows are nearly equal."""


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer's inputs; about the mean where the layer has a bias to absorb it.

    Args:
        halves: Moments (K, K) of the even and of the odd batches.
        rows: Number of rows in both.
    """

    halves: tuple[Matrix, Matrix]
    rows: int


class _Sums:
    """Accumulates the moments of one layer."""

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
                square - np.outer(mean, mean) / max(1, count)
                for square, mean, count in zip(self.squares, self.totals, self.rows, strict=True)
            )
        return Moments((first, second), sum(self.rows))


def gather_moments(model: ir.Model, layers: Sequence[Layer], batches: Batches) -> dict[str, Moments]:
    """Name of a layer's weights → the moments of what it reads.

    Args:
        model: The model the layers are of.
        layers: The layers; duplicates are gathered once.
        batches: Calibration data, read once.
    """
    by_weights = {layer.weights: layer for layer in layers}
    names = list(dict.fromkeys(name for layer in by_weights.values() for name in (layer.source, layer.node)))
    sums: dict[str, _Sums] = {}
    random = np.random.default_rng(0)
    for index, values in enumerate(watch(model, names, batches()) if names else ()):
        arrays = dict(zip(names, values, strict=True))
        for weights, layer in by_weights.items():
            x = _rows(layer, arrays, random)
            sums.setdefault(weights, _Sums(x.shape[1])).add(index % 2, x)
    return {weights: total.moments(centred=bool(by_weights[weights].bias)) for weights, total in sums.items()}


def _rows(layer: Layer, arrays: dict[str, Array], random: np.random.Generator) -> Matrix:
    return sample_rows(layer, arrays[layer.source], arrays[layer.node], per_item=PER_ITEM, random=random)[0]
