"""Repair without training: the layers behind a cut are solved anew, so that they give what the whole model gave.

Channel-pruning reconstruction (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017): for every
layer that reads fewer channels, in graph order, the weights that map what the pruned model feeds it to what the layer
gave in the original, by least squares over calibration activations. The solution is drawn towards the weights it had
(ridge); how much, one half of the data decides about the solution of the other. Only sums are kept, so memory does
not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.numerics import Array, Arrays
from compiler.passes.values import constant_of
from compiler.prune.groups import Ties, positions
from compiler.prune.moments import Batches
from compiler.prune.rows import Layer, Matrix, layer_of, sample_rows
from compiler.prune.sums import Sums, solve, sums_of
from compiler.prune.tap import watch

PER_ITEM = 48
"""Places of one image that a convolution is matched at: neighbours say nearly the same."""


@dataclass(frozen=True)
class Repaired:
    """What became of one layer.

    Args:
        layer: Name of its output.
        before: Squared error of its output against the original's, as a share of its energy, before the repair.
        after: The same after it, on data that were not solved with.
        ridge: How strongly the old weights were kept; infinite if only the bias was corrected.
        rows: Equations that were solved.
        unknowns: Weights per output that were solved for.
    """

    layer: str
    before: float
    after: float
    ridge: float
    rows: int
    unknowns: int

    @property
    def is_thin(self) -> bool:
        """Whether there were fewer equations than unknowns: the ridge decides then."""
        return self.rows < self.unknowns


def repair(
    original: ir.Model, pruned: ir.Model, ties: Ties, removed: Iterable[int], batches: Batches
) -> tuple[Repaired, ...]:
    """Solves every layer that reads fewer channels, in place of its weights in `pruned`.

    Args:
        original: The model the ties were found in.
        pruned: What `cut_channels` made of it; changed in place.
        ties: Its ties.
        removed: The classes that were cut.
        batches: Calibration data.
    """
    gone = [*removed]
    hit = {cut.initializer for cut in ties.cuts if cut.role == "reads" and not positions(cut.ids, gone).all()}
    outputs = {cut.initializer: positions(cut.ids, gone) for cut in ties.cuts if cut.role == "makes"}
    layers = [layer for node in pruned.graph if (layer := layer_of(node)) is not None and layer.weights in hit]
    return tuple(_repair(original, pruned, layer, outputs.get(layer.weights), batches) for layer in layers)


def _repair(original: ir.Model, pruned: ir.Model, layer: Layer, kept: Array | None, batches: Batches) -> Repaired:
    weights, bias = pruned.graph.initializers[layer.weights], pruned.graph.initializers.get(layer.bias)
    old = np.asarray(constant_of(weights))
    matrix = layer.matrix(old)
    halves = _gather(original, pruned, layer, matrix, kept, batches)
    change, ridge, after = solve([half.centred() if bias is not None else half for half in halves])
    whole = halves[0] + halves[1]
    _write(weights, layer.weights_of(matrix + change, old))
    if bias is not None:
        shape = np.asarray(constant_of(bias))
        moved = (whole.r - whole.x @ change) / max(1, whole.rows)
        _write(bias, (shape + moved.reshape(shape.shape)).astype(shape.dtype))
    return Repaired(layer.node, whole.rr / max(whole.yy, 1e-30), after, ridge, whole.rows, len(matrix))


def _gather(
    original: ir.Model, pruned: ir.Model, layer: Layer, matrix: Matrix, kept: Array | None, batches: Batches
) -> list[Sums]:
    """Moments of every other batch, and of the rest."""
    halves: list[Sums | None] = [None, None]
    random = np.random.default_rng(0)
    pairs = zip(
        watch(pruned, [layer.source, layer.node], batches()), watch(original, [layer.node], batches()), strict=True
    )
    for index, ((read, now), (given,)) in enumerate(pairs):
        wanted = given if kept is None else np.compress(kept.astype(bool), given, axis=1 if layer.kernel else -1)
        places = random.integers(1 << 62)
        x, y = sample_rows(layer, read, wanted, per_item=PER_ITEM, random=np.random.default_rng(places))
        _, z = sample_rows(layer, read, now, per_item=PER_ITEM, random=np.random.default_rng(places))
        half, one = halves[index % 2], sums_of(x, y - z, y)
        halves[index % 2] = one if half is None else half + one
    return [
        half if half is not None else sums_of(np.zeros((0, len(matrix))), *[np.zeros((0, matrix.shape[1]))] * 2)
        for half in halves
    ]


def _write(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def in_batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Whole arrays of samples, (N, …) each, in batches."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
