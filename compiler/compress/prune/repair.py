"""Repair without training: the layers behind a cut are solved anew, so that they give what the whole model gave.

Channel-pruning reconstruction (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017): for every
layer that reads fewer channels, in graph order, the weights that map what the pruned model feeds it to what the layer
gave in the original, by least squares over calibration activations. The solution is drawn towards the weights it had
(ridge); how much, one half of the data decides about the solution of the other. Memory holds only sums, so it does not
grow with the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

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
        samples: Inputs of the model they are from, mirror images among them.
    """

    layer: str
    before: float
    after: float
    ridge: float
    rows: int
    unknowns: int
    samples: int

    @property
    def is_thin(self) -> bool:
        """Whether there were fewer equations than unknowns: the ridge decides then."""
        return self.rows < self.unknowns


def repair(
    original: ir.Model, pruned: ir.Model, ties: Ties, removed: Iterable[int], batches: Batches
) -> tuple[Repaired, ...]:
    """Solves every layer that reads fewer channels, or reads what such a layer made, in place of its weights.

    The latter take up what is left of the errors before them. Layers that none of the others feeds are solved while
    the data go by once.

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
    """Solves layers in place, those that read earlier ones after them.

    Args:
        original: Gives what the layers shall give.
        changed: The model that they are layers of.
        weights: Names of their weights.
        batches: Calibration data.
        outputs: Weights → which outputs of the original's layer there still are; all where nothing is said.
    """
    found: list[Repaired] = []
    depths = depths_of(changed, weights)
    with scratch_folder() as folder:
        segments = Segments((changed, original), batches, folder)
        for depth, spots in enumerate(by_depth(changed, weights)):
            tasks = [_Task(changed, spot, (outputs or {}).get(spot.layer.weights)) for spot in spots]
            _gather(segments, tasks, _still_read(changed, depths, depth))
            found += [task.solve(changed) for task in tasks]
    return tuple(found)


def _behind(model: ir.Model, hit: Collection[str]) -> set[str]:
    """Weights of the layers that read what another one with these weights made, and these; shared ones only if hit."""
    changed: set[str] = set()
    found: set[str] = set()
    for node in model.graph:
        layer = layer_of(node)
        is_behind = any(value is not None and str(value.name) in changed for value in node.inputs)
        if layer is not None and (layer.weights in hit or (is_behind and _is_own(model, layer))):
            found.add(layer.weights)
        if is_behind or (layer is not None and layer.weights in found):
            changed |= {str(value.name) for value in node.outputs}
    return found


def _is_own(model: ir.Model, layer: Layer) -> bool:
    names = [name for name in (layer.weights, layer.bias) if name]
    return all(name in model.graph.initializers and len(model.graph.initializers[name].uses()) == 1 for name in names)


@dataclass(frozen=True)
class Spot:
    """A layer, and where it is matched with the original.

    Args:
        layer: The layer.
        match: Name of the value that shall be the original's: what the layer gives, or the sum that it is added to.
    """

    layer: Layer
    match: str


def by_depth(model: ir.Model, weights: Collection[str]) -> list[list[Spot]]:
    """Layers with these weights, in runs of which none reads what another one makes; a run only reads earlier ones.

    A layer that is added to what earlier runs have settled is matched after the addition: so the last layer of a
    residual block makes up for what the shortcut has lost too (He et al. 2017, section 3.3).
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
    """Name of a value → how many layers with these weights are before it, at most; inputs of the graph are at 0."""
    depths = {str(value.name): 0 for value in model.graph.inputs}
    for node in model.graph:
        depth = max((depths.get(str(value.name), 0) for value in read_by(node)), default=0)
        layer = layer_of(node)
        depth += layer is not None and layer.weights in weights
        depths |= {str(value.name): depth for value in node.outputs if value.name}
    return depths


def _still_read(model: ir.Model, depths: Mapping[str, int], depth: int) -> list[str]:
    """Values no deeper than this that deeper ones are computed from."""
    deeper = (node for node in model.graph if any(depths.get(str(value.name), 0) > depth for value in node.outputs))
    names = dict.fromkeys(str(value.name) for node in deeper for value in read_by(node))
    return [name for name in names if depths.get(name, depth + 1) <= depth]


def _match(node: ir.Node, read: int, depths: Mapping[str, int]) -> str:
    """The sum that alone reads the layer, if all else in it is settled by then; else what the layer gives."""
    given = node.outputs[0]
    uses = list(given.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or given.is_graph_output():
        return str(given.name)
    use = uses[0]
    other, total = use.node.inputs[1 - use.idx], use.node.outputs[0]
    is_settled = other is not None and other is not given and depths.get(str(other.name), read + 1) <= read
    is_alike = other is not None and None not in (other.shape, given.shape) and other.shape == given.shape
    return str(total.name) if is_settled and is_alike else str(given.name)


class _Task:
    """One layer while the data go by.

    Args:
        model: The pruned model.
        spot: The layer and where it is matched.
        kept: Which of its outputs there still are; None for all.
    """

    def __init__(self, model: ir.Model, spot: Spot, kept: Array | None) -> None:
        self.layer, self.match, self._kept = spot.layer, spot.match, kept
        self._old = np.asarray(constant_of(model.graph.initializers[spot.layer.weights]))
        self._matrix = spot.layer.matrix(self._old)
        nothing = np.zeros((0, self._matrix.shape[1]))
        self._samples = 0
        self._halves = [sums_of(np.zeros((0, len(self._matrix))), nothing, nothing)] * 2

    def add(self, half: int, read: Array, now: Array, given: Array, seed: int) -> None:
        """One batch: what the pruned layer reads, and where it is matched what there is now and was given."""
        axis = 1 if self.layer.kernel else -1
        wanted = given if self._kept is None else np.compress(self._kept.astype(bool), given, axis=axis)
        x, y = sample_rows(self.layer, read, wanted, per_item=PER_ITEM, random=np.random.default_rng(seed))
        _, z = sample_rows(self.layer, read, now, per_item=PER_ITEM, random=np.random.default_rng(seed))
        self._halves[half] += sums_of(x, y - z, y)
        self._samples += len(read)

    def solve(self, model: ir.Model) -> Repaired:
        """Writes the new weights, and the bias that takes up the mean of what is left."""
        layer, bias = self.layer, model.graph.initializers.get(self.layer.bias)
        halves = [half.centred() if bias is not None else half for half in self._halves]
        change, ridge, after = solve(halves)
        whole = self._halves[0] + self._halves[1]
        _write(model.graph.initializers[layer.weights], layer.weights_of(self._matrix + change, self._old))
        if bias is not None:
            old = np.asarray(constant_of(bias))
            moved = (whole.r - whole.x @ change) / max(1, whole.rows)
            _write(bias, (old + moved.reshape(old.shape)).astype(old.dtype))
        before = whole.rr / max(whole.yy, 1e-30)
        return Repaired(layer.node, before, after, ridge, whole.rows, len(self._matrix), self._samples)


def _gather(segments: Segments, tasks: Sequence[_Task], kept: Sequence[str]) -> None:
    """Shows every batch to all tasks, every other one as the second half."""
    given = list(dict.fromkeys(task.match for task in tasks))
    read = list(dict.fromkeys([*given, *(task.layer.source for task in tasks)]))
    seeds = np.random.default_rng(0)
    for index, (now, before) in enumerate(segments.advance((read, given), kept)):
        seed = int(seeds.integers(1 << 62))
        for task in tasks:
            task.add(index % 2, now[task.layer.source], now[task.match], before[task.match], seed)


def _write(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def in_batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Whole arrays of samples, (N, …) each, in batches."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
