"""What a channel is worth, and in which order a group's channels go: by weights, by what they carry, by redundancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from compiler.passes.values import constant_of
from compiler.prune.groups import Group, Ties
from compiler.prune.repair import Batches
from compiler.prune.rows import Layer, Matrix, as_matrix, layer_of, sample_rows
from compiler.prune.tap import watch

Measure: TypeAlias = Literal["weights", "activations", "redundancy"]

PER_ITEM = 24
"""Places of one image that a layer is looked at."""

STEPS = 8
"""How often on the way to no channel at all the error is computed; between these it is interpolated."""


@dataclass(frozen=True)
class Removal:
    """The order in which a group's channels go.

    Args:
        group: The group.
        order: Its channels, the least valuable first.
        errors: Squared error of the readers' outputs, as a share of their energy and summed over the readers, after
            the first 1, 2, … channels are gone; for `redundancy` after the readers have been solved anew.
    """

    group: Group
    order: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass
class _Reader:
    """One layer that reads the group.

    Args:
        weights: Its weights (K, N); those of channels that are gone are zero, the others make up for them.
        inverse: Inverse of its inputs' moments (K, K), shrunk towards their diagonal.
        halves: The moments of each half of the data: what one half says is judged by the other.
        rows: Rows the moments are of.
        blocks: Channel → its rows of the weights.
        energy: Of its outputs.
    """

    weights: Matrix
    inverse: Matrix
    halves: tuple[Matrix, Matrix]
    rows: int
    blocks: dict[int, list[int]]
    energy: float


def removal_order(model: ir.Model, ties: Ties, group: Group, batches: Batches, *, measure: Measure) -> Removal:
    """Orders a group's channels.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        group: One of its groups.
        batches: Calibration data; `weights` does not read them.
        measure: `weights`, the L2 norm of what makes a channel (Li et al., Pruning Filters for Efficient ConvNets,
            2017); `activations`, the energy it carries into its readers (first order); `redundancy`, the error that
            is left when the readers make up for it as well as they can (Optimal Brain Compression, Frantar and
            Alistarh, 2022, with a channel's filter as the block), computed anew after every removal.
    """
    if measure == "weights":
        norms = _norms(model, ties, group)
        order = sorted(group.channels, key=lambda channel: (norms[channel], channel))
        return Removal(group, tuple(order), tuple(np.cumsum([norms[channel] ** 2 for channel in order]).tolist()))
    readers = _readers(model, ties, group, batches)
    if measure == "activations":
        return _by_energy(group, readers)
    return _by_redundancy(group, readers)


def _norms(model: ir.Model, ties: Ties, group: Group) -> dict[int, float]:
    scores = dict.fromkeys(group.channels, 0.0)
    for cut in ties.cuts:
        if cut.role == "makes" and cut.node in group.makers:
            array = np.asarray(constant_of(model.graph.initializers[cut.initializer]), np.float64)
            norms = np.sqrt((np.moveaxis(array, cut.axis, 0).reshape(array.shape[cut.axis], -1) ** 2).sum(axis=1))
            for channel, norm in zip(cut.ids.tolist(), norms / max(float(norms.max()), 1e-30), strict=True):
                if channel in scores:
                    scores[channel] += float(norm)
    return scores


def _readers(model: ir.Model, ties: Ties, group: Group, batches: Batches) -> list[_Reader]:
    layers = {layer.weights: layer for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")
              and (layer := layer_of(node)) is not None}  # fmt: skip
    cuts = [cut for cut in ties.cuts if cut.role == "reads" and cut.node in group.readers and cut.initializer in layers]
    return [_reader(model, layers[cut.initializer], cut.ids.tolist(), {*group.channels}, batches) for cut in cuts]


def _reader(model: ir.Model, layer: Layer, ids: Sequence[int], channels: set[int], batches: Batches) -> _Reader:
    weights = layer.matrix(np.asarray(constant_of(model.graph.initializers[layer.weights])))
    halves, rows = _moments(model, layer, len(weights), batches)
    moments = halves[0] + halves[1]
    blocks: dict[int, list[int]] = {}
    size = len(weights) // len(ids)
    for place, channel in enumerate(ids):
        if channel in channels:
            blocks.setdefault(channel, []).extend(range(place * size, (place + 1) * size))
    energy = max(float((weights * (moments @ weights)).sum()), 1e-30)
    return _Reader(weights, as_matrix(np.linalg.inv(shrunk(moments, rows))), halves, rows, blocks, energy)


def shrunk(moments: Matrix, rows: int) -> Matrix:
    """Moments that can be inverted: the fewer rows they are from, the more of them is put on the diagonal."""
    share = 1e-3 + 0.1 * len(moments) / max(1, rows)
    floor = 1e-6 * float(np.trace(moments)) / len(moments) + 1e-12
    return moments + np.diag(share * np.diag(moments) + floor)


def _moments(model: ir.Model, layer: Layer, size: int, batches: Batches) -> tuple[tuple[Matrix, Matrix], int]:
    sums = [np.zeros((size, size)), np.zeros((size, size))]
    totals, rows = [np.zeros(size), np.zeros(size)], [0, 0]
    random = np.random.default_rng(0)
    for index, (read, given) in enumerate(watch(model, [layer.source, layer.node], batches())):
        x, _ = sample_rows(layer, read, given, per_item=PER_ITEM, random=random)
        sums[index % 2] += x.T @ x
        totals[index % 2] += x.sum(axis=0)
        rows[index % 2] += len(x)
    if layer.bias:
        sums = [one - np.outer(mean, mean) / max(1, n) for one, mean, n in zip(sums, totals, rows, strict=True)]
    return (sums[0], sums[1]), sum(rows)


def _by_energy(group: Group, readers: Sequence[_Reader]) -> Removal:
    scores = dict.fromkeys(group.channels, 0.0)
    for reader in readers:
        for channel, block in reader.blocks.items():
            part = reader.weights[block]
            scores[channel] += (
                float((part * ((reader.halves[0] + reader.halves[1])[np.ix_(block, block)] @ part)).sum())
                / reader.energy
            )
    order = sorted(group.channels, key=lambda channel: (scores[channel], channel))
    return Removal(group, tuple(order), tuple(np.cumsum([scores[channel] for channel in order]).tolist()))


def _by_redundancy(group: Group, readers: Sequence[_Reader]) -> Removal:
    whole = [reader.weights.copy() for reader in readers]
    left, order = list(group.channels), list[int]()
    counts, errors = [0], [0.0]
    step = -(-len(left) // STEPS)
    while left:
        costs = sum((_costs(reader, left) for reader in readers), np.zeros(len(left)))
        order.append(left.pop(int(np.argmin(costs))))
        for reader in readers:
            _remove(reader, reader.blocks.get(order[-1], []))
        if len(order) % step == 0 or not left:
            counts.append(len(order))
            errors.append(sum(_held_out(reader, w, order) for reader, w in zip(readers, whole, strict=True)))
    every = np.interp(np.arange(1, len(order) + 1), counts, np.maximum.accumulate(errors))
    return Removal(group, tuple(order), tuple(every.tolist()))


def _held_out(reader: _Reader, weights: Matrix, gone: Sequence[int]) -> float:
    """Error without these channels, where each half of the data is judged with what the other half made up."""
    lost = [row for channel in gone for row in reader.blocks.get(channel, [])]
    rows = np.array(lost, dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(weights)), rows)
    total = 0.0
    for fit, judge in (reader.halves, reader.halves[::-1]):
        made_up = weights[kept]
        if len(rows) and len(kept):
            inner = shrunk(fit, reader.rows // 2)[np.ix_(kept, kept)]
            made_up = made_up + np.linalg.solve(inner, fit[np.ix_(kept, rows)] @ weights[rows])
        rest = np.zeros_like(weights)
        rest[kept], rest[rows] = made_up - weights[kept], -weights[rows]
        total += float((rest * (judge @ rest)).sum())
    return total / reader.energy


def _costs(reader: _Reader, channels: Sequence[int]) -> Matrix:
    """For every channel the error that its removal adds: tr(Wₛᵀ (H⁻¹ₛₛ)⁻¹ Wₛ), as a share of the energy."""
    costs = np.zeros(len(channels))
    by_size: dict[int, list[int]] = {}
    for place, channel in enumerate(channels):
        by_size.setdefault(len(reader.blocks.get(channel, ())), []).append(place)
    for size, places in by_size.items():
        if size:
            blocks = np.array([reader.blocks[channels[place]] for place in places])
            inner = reader.inverse[blocks[:, :, None], blocks[:, None, :]]
            parts = reader.weights[blocks]
            costs[places] = (parts * np.linalg.solve(inner, parts)).sum(axis=(1, 2)) / reader.energy
    return costs


def _remove(reader: _Reader, block: list[int]) -> None:
    """The weights that are left make up for the block; the block's rows and columns of the inverse become zero."""
    if block:
        columns = reader.inverse[:, block]
        solved = np.linalg.solve(columns[block], np.concatenate([reader.weights[block], columns.T], axis=1))
        outputs = reader.weights.shape[1]
        reader.weights -= columns @ solved[:, :outputs]
        reader.inverse -= columns @ solved[:, outputs:]
