"""Repair without training: the layers behind a cut are solved anew, so that they give what the whole model gave.

Channel-pruning reconstruction (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017): for every
layer that reads fewer channels, in graph order, the weights that map what the pruned model feeds it to what the layer
gave in the original, by least squares over calibration activations. The solution is drawn towards the weights it had
(ridge), and only the sums XᵀX and Xᵀ(Y − XW) are kept, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from compiler.numerics import Array, Arrays
from compiler.passes.values import constant_of
from compiler.prune.groups import Ties, positions
from compiler.prune.rows import Layer, Matrix, layer_of, sample_rows
from compiler.prune.tap import watch

PER_ITEM = 48
"""Places of one image that a convolution is matched at: neighbours say nearly the same."""

RIDGE = 1e-3
"""Weight of staying near the old weights, as a share of the mean energy of one input."""

Batches = Callable[[], Iterable[Arrays]]
"""Gives the calibration data from the start, as often as it is called."""


@dataclass(frozen=True)
class Repaired:
    """What became of one layer.

    Args:
        layer: Name of its output.
        before: Squared error of its output against the original's, as a share of its energy, before the repair.
        after: The same after it.
        rows: Equations that were solved.
        unknowns: Weights per output that were solved for.
    """

    layer: str
    before: float
    after: float
    rows: int
    unknowns: int


@dataclass
class _Sums:
    """Moments of one layer's equations, centred when asked for."""

    xx: Matrix
    xr: Matrix
    x: Matrix
    r: Matrix
    rr: float = 0.0
    yy: float = 0.0
    rows: int = 0


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
    done = []
    for node in list(pruned.graph):
        layer = layer_of(node)
        if layer is not None and layer.weights in hit:
            done.append(_solve(original, pruned, layer, outputs.get(layer.weights), batches))
    return tuple(done)


def _solve(original: ir.Model, pruned: ir.Model, layer: Layer, kept: Array | None, batches: Batches) -> Repaired:
    value = pruned.graph.initializers[layer.weights]
    old = np.asarray(constant_of(value))
    matrix = layer.matrix(old)
    bias = pruned.graph.initializers.get(layer.bias)
    offset = np.asarray(constant_of(bias), np.float64).reshape(-1) if bias is not None else np.zeros(matrix.shape[1])
    sums = _gather(original, pruned, layer, matrix, offset, kept, batches)
    centred = bias is not None and sums.rows > 0
    change = _ridge(sums, centred)
    value.const_value = ir.tensor(layer.weights_of(matrix + change, old), name=value.name)
    if bias is not None and centred:
        moved = (sums.r - sums.x @ change) / sums.rows
        flat = (offset + moved).reshape(np.asarray(constant_of(bias)).shape)
        bias.const_value = ir.tensor(flat.astype(np.asarray(constant_of(bias)).dtype), name=bias.name)
    after = _error(sums, change, centred)
    return Repaired(layer.node, sums.rr / max(sums.yy, 1e-30), after, sums.rows, len(matrix))


def _gather(
    original: ir.Model,
    pruned: ir.Model,
    layer: Layer,
    matrix: Matrix,
    offset: Matrix,
    kept: Array | None,
    batches: Batches,
) -> _Sums:
    inputs, outputs = matrix.shape
    sums = _Sums(np.zeros((inputs, inputs)), np.zeros((inputs, outputs)), np.zeros(inputs), np.zeros(outputs))
    random = np.random.default_rng(0)
    for (read,), (given,) in zip(
        watch(pruned, [layer.source], batches()), watch(original, [layer.node], batches()), strict=True
    ):
        wanted = given if kept is None else np.compress(kept, given, axis=1 if layer.kernel else -1)
        x, y = sample_rows(layer, read, wanted, per_item=PER_ITEM, random=random)
        rest = y - (x @ matrix + offset)
        sums.xx += x.T @ x
        sums.xr += x.T @ rest
        sums.x += x.sum(axis=0)
        sums.r += rest.sum(axis=0)
        sums.rr += float((rest**2).sum())
        sums.yy += float((y**2).sum())
        sums.rows += len(x)
    return sums


def _ridge(sums: _Sums, centred: bool) -> Matrix:
    xx, xr = _moments(sums, centred)
    weight = RIDGE * float(np.trace(xx)) / max(1, len(xx)) + 1e-12
    change: Matrix = np.linalg.solve(xx + weight * np.eye(len(xx)), xr)
    return change


def _moments(sums: _Sums, centred: bool) -> tuple[Matrix, Matrix]:
    if not centred:
        return sums.xx, sums.xr
    return sums.xx - np.outer(sums.x, sums.x) / sums.rows, sums.xr - np.outer(sums.x, sums.r) / sums.rows


def _error(sums: _Sums, change: Matrix, centred: bool) -> float:
    xx, xr = _moments(sums, centred)
    base = sums.rr - (float((sums.r**2).sum()) / sums.rows if centred else 0.0)
    left = base - 2 * float((change * xr).sum()) + float((change * (xx @ change)).sum())
    return max(left, 0.0) / max(sums.yy, 1e-30)


def in_batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Whole arrays of samples, (N, …) each, in batches."""
    count = len(next(iter(arrays.values())))
    for start in islice(range(0, count, size), None):
        yield {name: array[start : start + size] for name, array in arrays.items()}
