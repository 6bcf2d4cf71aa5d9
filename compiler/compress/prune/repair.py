"""Repair without training: least squares for the layers behind a cut, so that they reproduce the original's outputs.

Channel-pruning reconstruction (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017): for every
layer that reads fewer channels, in graph order, the weights that map what the pruned model feeds it to what the layer
gave in the original, by least squares over calibration activations. The solution is drawn towards the old weights
(ridge regression); two-fold cross-validation chooses how strongly. Only sums are held, so memory does not grow with the
data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.artifact.schema import Repaired
from compiler.compress.prune.groups import Ties, positions
from compiler.compress.prune.moments import Batches
from compiler.compress.prune.rows import Layer, layer_of, sample_rows
from compiler.compress.prune.segments import Segments
from compiler.compress.prune.sums import solve, sums_of
from compiler.model.frontend.extract import read_by
from compiler.model.numerics import Array, Arrays
from compiler.passes.values import constant_of
from compiler.store.scratch import scratch_folder

PER_ITEM = 48
"""Positions of one image that a convolution is matched at: neighbouring windows are nearly equal."""


def repair(
    original: ir.Model, pruned: ir.Model, ties: Ties, removed: Iterable[int], batches: Batches
) -> tuple[Repaired, ...]:
    """Repairs every layer that reads fewer channels, or that follows such a layer; changes weights in place.

    The latter compensate remaining errors of the layers before them. Layers that do not depend on each other are solved
    in one pass over the data.

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
    return solve_layers(original, pruned, _behind(pruned, hit), batches, outputs=outputs)


def solve_layers(
    original: ir.Model,
    changed: ir.Model,
    weights: Collection[str],
    batches: Batches,
    *,
    outputs: Mapping[str, Array] | None = None,
) -> tuple[Repaired, ...]:
    """Solves layers in place, in topological order.

    Args:
        original: The model whose values are the targets.
        changed: The model with the layers to solve.
        weights: Names of their weights.
        batches: Calibration data.
        outputs: Weights → mask of the original layer's outputs that remain; all where it is missing.
    """
    repaired: list[Repaired] = []
    depths = depths_of(changed, weights)
    with scratch_folder() as folder:
        segments = Segments((changed, original), batches, folder)
        for depth, spots in enumerate(by_depth(changed, weights)):
            tasks = [_Task(changed, spot, (outputs or {}).get(spot.layer.weights)) for spot in spots]
            _gather(segments, tasks, _still_read(changed, depths, depth))
            repaired += [task.solve(changed) for task in tasks]
    return tuple(repaired)


def _behind(model: ir.Model, hit: Collection[str]) -> set[str]:
    """Weights of the layers in `hit` and of those that depend on them; shared weights only if in `hit`."""
    changed: set[str] = set()
    weights: set[str] = set()
    for node in model.graph:
        layer = layer_of(node)
        is_behind = any(value is not None and str(value.name) in changed for value in node.inputs)
        if layer is not None and (layer.weights in hit or (is_behind and _is_own(model, layer))):
            weights.add(layer.weights)
        if is_behind or (layer is not None and layer.weights in weights):
            changed |= {str(value.name) for value in node.outputs}
    return weights


def _is_own(model: ir.Model, layer: Layer) -> bool:
    names = [name for name in (layer.weights, layer.bias) if name]
    return all(name in model.graph.initializers and len(model.graph.initializers[name].uses()) == 1 for name in names)


@dataclass(frozen=True)
class Spot:
    """A layer, and the value at which it is matched with the original.

    Args:
        layer: The layer.
        match: Name of the value to reproduce: the layer's output, or the sum it is added to.
    """

    layer: Layer
    match: str


def by_depth(model: ir.Model, weights: Collection[str]) -> list[list[Spot]]:
    """Layers with these weights, in runs of independent layers; a run depends only on earlier ones.

    A layer whose output is added to a result of earlier runs is matched after the addition: so the last layer of a
    residual block compensates for the error of the shortcut too (He et al. 2017, section 3.3).
    """
    depths = depths_of(model, weights)
    runs: list[list[Spot]] = []
    for node in model.graph:
        layer = layer_of(node)
        if layer is not None and layer.weights in weights:
            read = depths[layer.node] - 1
            runs += [[] for _ in range(read + 1 - len(runs))]
            runs[read].append(Spot(layer, _match(node, read, depths)))
    return runs


def depths_of(model: ir.Model, weights: Collection[str]) -> dict[str, int]:
    """Name of a value → length of the longest path of layers with these weights before it; 0 at graph inputs."""
    depths = {str(value.name): 0 for value in model.graph.inputs}
    for node in model.graph:
        depth = max((depths.get(str(value.name), 0) for value in read_by(node)), default=0)
        layer = layer_of(node)
        depth += layer is not None and layer.weights in weights
        depths |= {str(value.name): depth for value in node.outputs if value.name}
    return depths


def _still_read(model: ir.Model, depths: Mapping[str, int], depth: int) -> list[str]:
    """Values up to this depth that deeper values are computed from."""
    deeper = (node for node in model.graph if any(depths.get(str(value.name), 0) > depth for value in node.outputs))
    names = dict.fromkeys(str(value.name) for node in deeper for value in read_by(node))
    return [name for name in names if depths.get(name, depth + 1) <= depth]


def _match(node: ir.Node, read: int, depths: Mapping[str, int]) -> str:
    """The sum that is the layer's only reader, if its other operand is computed by then; else the layer's output."""
    result = node.outputs[0]
    uses = list(result.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or result.is_graph_output():
        return str(result.name)
    use = uses[0]
    other, total = use.node.inputs[1 - use.idx], use.node.outputs[0]
    is_settled = other is not None and other is not result and depths.get(str(other.name), read + 1) <= read
    is_alike = other is not None and None not in (other.shape, result.shape) and other.shape == result.shape
    return str(total.name) if is_settled and is_alike else str(result.name)


class _Task:
    """Accumulates and solves the equations of one layer.

    Args:
        model: The pruned model.
        spot: The layer and where it is matched.
        kept: Mask of the outputs that remain; None for all.
    """

    def __init__(self, model: ir.Model, spot: Spot, channels: Array | None) -> None:
        self.layer, self.match, self._kept = spot.layer, spot.match, channels
        self._old = np.asarray(constant_of(model.graph.initializers[spot.layer.weights]))
        self._matrix = spot.layer.matrix(self._old)
        nothing = np.zeros((0, self._matrix.shape[1]))
        self._samples = 0
        self._halves = [sums_of(np.zeros((0, len(self._matrix))), nothing, nothing)] * 2

    def add(self, half: int, read: Array, current: Array, original: Array, seed: int) -> None:
        """Adds one batch: the pruned layer's input, and the pruned and the original value where it is matched."""
        axis = 1 if self.layer.kernel else -1
        expected = original if self._kept is None else np.compress(self._kept.astype(bool), original, axis=axis)
        x, y = sample_rows(self.layer, read, expected, per_item=PER_ITEM, random=np.random.default_rng(seed))
        _, z = sample_rows(self.layer, read, current, per_item=PER_ITEM, random=np.random.default_rng(seed))
        self._halves[half] += sums_of(x, y - z, y)
        self._samples += len(read)

    def solve(self, model: ir.Model) -> Repaired:
        """Writes the new weights, and a bias that absorbs the mean error."""
        layer, bias = self.layer, model.graph.initializers.get(self.layer.bias)
        halves = [half.centred() if bias is not None else half for half in self._halves]
        change, ridge, after = solve(halves)
        sums = self._halves[0] + self._halves[1]
        _write(model.graph.initializers[layer.weights], layer.weights_of(self._matrix + change, self._old))
        if bias is not None:
            old = np.asarray(constant_of(bias))
            moved = (sums.r - sums.x @ change) / max(1, sums.rows)
            _write(bias, (old + moved.reshape(old.shape)).astype(old.dtype))
        before = sums.rr / max(sums.yy, 1e-30)
        return Repaired(layer.node, before, after, ridge, sums.rows, len(self._matrix), self._samples)


def _gather(segments: Segments, tasks: Sequence[_Task], carried: Sequence[str]) -> None:
    """Adds all batches to all tasks; odd batches are the second half."""
    matched = list(dict.fromkeys(task.match for task in tasks))
    read = list(dict.fromkeys([*matched, *(task.layer.source for task in tasks)]))
    seeds = np.random.default_rng(0)
    for index, (now, before) in enumerate(segments.advance((read, matched), carried)):
        seed = int(seeds.integers(1 << 62))
        for task in tasks:
            # one seed for all tasks: each samples the same positions of input, output and target
            task.add(index % 2, now[task.layer.source], now[task.match], before[task.match], seed)


def _write(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def in_batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Whole arrays of samples, (N, …) each, in batches."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
