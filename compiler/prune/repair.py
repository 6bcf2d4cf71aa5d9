"""Repair without training: the layers behind a cut are solved anew, so that they give what the whole model gave.

Channel-pruning reconstruction (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017): for every
layer that reads fewer channels, in graph order, the weights that map what the pruned model feeds it to what the layer
gave in the original, by least squares over calibration activations. The solution is drawn towards the weights it had
(ridge); how much, one half of the data decides about the solution of the other. Only sums are kept, so memory does
not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.numerics import Array, Arrays
from compiler.passes.values import constant_of
from compiler.prune.groups import Ties, positions
from compiler.prune.moments import Batches
from compiler.prune.rows import Layer, Matrix, layer_of, sample_rows
from compiler.prune.sums import Sums, error_of, solve, sums_of
from compiler.prune.tap import watch

PER_ITEM = 48
"""Places of one image that a convolution is matched at: neighbours say nearly the same."""

Fit = Callable[[Layer, Matrix, Sums], Matrix]
"""Solved weights (K, N) and the equations they solve → weights in another form that solve them nearly as well."""


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
    """Solves every layer that reads fewer channels, in place of its weights in `pruned`.

    Layers that none of the others feeds are solved while the data go by once.

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
    return solve_layers(original, pruned, hit, batches, outputs=outputs)


def solve_layers(
    original: ir.Model,
    changed: ir.Model,
    weights: Collection[str],
    batches: Batches,
    *,
    outputs: Mapping[str, Array] | None = None,
    fit: Fit | None = None,
) -> tuple[Repaired, ...]:
    """Solves layers in place, those that read earlier ones after them.

    Args:
        original: Gives what the layers shall give.
        changed: The model that they are layers of.
        weights: Names of their weights.
        batches: Calibration data.
        outputs: Weights → which outputs of the original's layer there still are; all where nothing is said.
        fit: Brings solved weights into a form of its own; None leaves them.
    """
    found: list[Repaired] = []
    for layers in by_depth(changed, weights):
        tasks = [_Task(changed, layer, (outputs or {}).get(layer.weights)) for layer in layers]
        _gather(original, changed, tasks, batches)
        found += [task.solve(changed, fit) for task in tasks]
    return tuple(found)


def by_depth(model: ir.Model, weights: Collection[str]) -> list[list[Layer]]:
    """Layers with these weights, in runs of which none reads what another one makes; a run only reads earlier ones."""
    depths: dict[str, int] = {}
    runs: list[list[Layer]] = []
    for node in model.graph:
        read = max((depths.get(str(value.name), 0) for value in node.inputs if value is not None), default=0)
        layer = layer_of(node)
        if layer is not None and layer.weights in weights:
            if read == len(runs):
                runs.append([])
            runs[read].append(layer)
            read += 1
        depths |= {str(value.name): read for value in node.outputs}
    return runs


class _Task:
    """One layer while the data go by.

    Args:
        model: The pruned model.
        layer: The layer.
        kept: Which of its outputs there still are; None for all.
    """

    def __init__(self, model: ir.Model, layer: Layer, kept: Array | None) -> None:
        self.layer, self._kept = layer, kept
        self._old = np.asarray(constant_of(model.graph.initializers[layer.weights]))
        self._matrix = layer.matrix(self._old)
        nothing = np.zeros((0, self._matrix.shape[1]))
        self._samples = 0
        self._halves = [sums_of(np.zeros((0, len(self._matrix))), nothing, nothing)] * 2

    def add(self, half: int, read: Array, now: Array, given: Array, seed: int) -> None:
        """One batch: what the pruned layer reads and gives, and what the original one gave."""
        axis = 1 if self.layer.kernel else -1
        wanted = given if self._kept is None else np.compress(self._kept.astype(bool), given, axis=axis)
        x, y = sample_rows(self.layer, read, wanted, per_item=PER_ITEM, random=np.random.default_rng(seed))
        _, z = sample_rows(self.layer, read, now, per_item=PER_ITEM, random=np.random.default_rng(seed))
        self._halves[half] += sums_of(x, y - z, y)
        self._samples += len(read)

    def solve(self, model: ir.Model, fit: Fit | None) -> Repaired:
        """Writes the new weights, and the bias that takes up the mean of what is left."""
        layer, bias = self.layer, model.graph.initializers.get(self.layer.bias)
        halves = [half.centred() if bias is not None else half for half in self._halves]
        change, ridge, after = solve(halves)
        if fit is not None:
            both = halves[0] + halves[1]
            change = fit(layer, self._matrix + change, both) - self._matrix
            after = error_of(both, change) / max(both.yy, 1e-30)
        whole = self._halves[0] + self._halves[1]
        _write(model.graph.initializers[layer.weights], layer.weights_of(self._matrix + change, self._old))
        if bias is not None:
            old = np.asarray(constant_of(bias))
            moved = (whole.r - whole.x @ change) / max(1, whole.rows)
            _write(bias, (old + moved.reshape(old.shape)).astype(old.dtype))
        before = whole.rr / max(whole.yy, 1e-30)
        return Repaired(layer.node, before, after, ridge, whole.rows, len(self._matrix), self._samples)


def _gather(original: ir.Model, pruned: ir.Model, tasks: Sequence[_Task], batches: Batches) -> None:
    """Shows every batch to all tasks, every other one as the second half."""
    given = list(dict.fromkeys(task.layer.node for task in tasks))
    read = list(dict.fromkeys([*given, *(task.layer.source for task in tasks)]))
    seeds = np.random.default_rng(0)
    pairs = zip(watch(pruned, read, batches()), watch(original, given, batches()), strict=True)
    for index, (found, wanted) in enumerate(pairs):
        now, before = dict(zip(read, found, strict=True)), dict(zip(given, wanted, strict=True))
        seed = int(seeds.integers(1 << 62))
        for task in tasks:
            node = task.layer.node
            task.add(index % 2, now[task.layer.source], now[node], before[node], seed)


def _write(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def in_batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Whole arrays of samples, (N, …) each, in batches."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
