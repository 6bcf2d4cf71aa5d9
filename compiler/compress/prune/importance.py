"""What a channel is worth, and in which order a group's channels go: by weights, by what they carry, by redundancy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.gains import error_gains
from compiler.compress.prune.groups import Group, Ties
from compiler.compress.prune.moments import Batches, Moments, gather_moments
from compiler.compress.prune.rows import Layer, Matrix, as_matrix, layer_of
from compiler.compress.prune.sensitivity import output_losses
from compiler.passes.values import constant_of

Measure: TypeAlias = Literal["weights", "activations", "sensitivity", "redundancy"]

MOMENT_BYTES = 1 << 30
"""Of the moments that are in memory at a time."""

STEPS = 8
"""How often on the way to no channel at all the error is computed; between these it is interpolated."""


@dataclass(frozen=True)
class Removal:
    """The order in which a group's channels go.

    Args:
        group: The group.
        order: Its channels, the least valuable first.
        errors: Squared error that is expected of the model's outputs after the first 1, 2, … channels are gone, as a
            share of their energy: that of the readers' outputs at their gains; for `redundancy` after the readers have
            been solved anew, for `weights` the squares of norms.
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
        energy: Of its outputs, over what an error in them does to the model's: errors are told as shares of it.
    """

    weights: Matrix
    inverse: Matrix
    halves: tuple[Matrix, Matrix]
    rows: int
    blocks: dict[int, list[int]]
    energy: float


def removal_orders(
    model: ir.Model, ties: Ties, groups: Sequence[Group], batches: Batches, *, measure: Measure
) -> tuple[Removal, ...]:
    """Orders the channels of groups; the data go by once for as many groups as their moments fit into memory.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        groups: Some of its groups.
        batches: Calibration data; `weights` does not read them.
        measure: `weights`, the L2 norm of what makes a channel (Li et al., Pruning Filters for Efficient ConvNets,
            2017); `activations`, the energy it carries into its readers; `sensitivity`, what the model's outputs lose
            without it, to first order (Molchanov et al., Importance Estimation for Neural Network Pruning, 2019;
            measured, since there is no graph of gradients); `redundancy`, the error that is left when the readers
            make up for it as well as they can (Optimal Brain Compression, Frantar and Alistarh, 2022, with a channel's
            filter as the block), computed anew after every removal.
    """
    if measure == "weights":
        return tuple(_by_score(group, _norms(model, ties, group)) for group in groups)
    if measure == "sensitivity":
        losses = output_losses(model, ties, groups, batches())
        return tuple(_by_score(group, losses) for group in groups)
    order = _by_energy if measure == "activations" else _by_redundancy
    found: list[Removal] = []
    gains = error_gains(model, [layer for group in groups for layer, _ in _reads(model, ties, group)], batches())
    for some in _affordable(model, ties, groups):
        moments = gather_moments(model, [layer for _, reads in some for layer, _ in reads], batches)
        for group, reads in some:
            readers = [
                _reader(model, layer, ids, {*group.channels}, moments[layer.weights], gains[layer.node])
                for layer, ids in reads
            ]
            found.append(order(group, readers))
    return tuple(found)


Reads: TypeAlias = Sequence[tuple[Layer, Sequence[int]]]
"""Layers that read a group, each with the channel at every place of its inputs."""


def _affordable(model: ir.Model, ties: Ties, groups: Sequence[Group]) -> Iterator[list[tuple[Group, Reads]]]:
    """The groups in runs whose readers' moments fit into `MOMENT_BYTES`; one group at least."""
    run: list[tuple[Group, Reads]] = []
    size = 0
    for group in groups:
        reads = _reads(model, ties, group)
        own = sum(16 * _inputs(model, layer) ** 2 for layer, _ in reads)
        if run and size + own > MOMENT_BYTES:
            yield run
            run, size = [], 0
        run.append((group, reads))
        size += own
    yield run


def _inputs(model: ir.Model, layer: Layer) -> int:
    return len(layer.matrix(np.asarray(constant_of(model.graph.initializers[layer.weights]))))


def _reads(model: ir.Model, ties: Ties, group: Group) -> Reads:
    layers = {layer.weights: layer for node in model.graph if (layer := layer_of(node)) is not None}
    cuts = [cut for cut in ties.cuts if cut.role == "reads" and cut.node in group.readers and cut.initializer in layers]
    return [(layers[cut.initializer], cut.ids.tolist()) for cut in cuts]


def _by_score(group: Group, scores: Mapping[int, float]) -> Removal:
    """The least score first; scores add up."""
    order = sorted(group.channels, key=lambda channel: (scores[channel], channel))
    return Removal(group, tuple(order), tuple(np.cumsum([scores[channel] for channel in order]).tolist()))


def _norms(model: ir.Model, ties: Ties, group: Group) -> dict[int, float]:
    scores = dict.fromkeys(group.channels, 0.0)
    for cut in ties.cuts:
        if cut.role == "makes" and cut.node in group.makers:
            array = np.asarray(constant_of(model.graph.initializers[cut.initializer]), np.float64)
            norms = np.sqrt((np.moveaxis(array, cut.axis, 0).reshape(array.shape[cut.axis], -1) ** 2).sum(axis=1))
            for channel, norm in zip(cut.ids.tolist(), norms / max(float(norms.max()), 1e-30), strict=True):
                if channel in scores:
                    scores[channel] += float(norm)
    return {channel: score**2 for channel, score in scores.items()}


def _reader(
    model: ir.Model, layer: Layer, ids: Sequence[int], channels: set[int], found: Moments, gain: float
) -> _Reader:
    weights = layer.matrix(np.asarray(constant_of(model.graph.initializers[layer.weights])))
    moments = found.halves[0] + found.halves[1]
    blocks: dict[int, list[int]] = {}
    size = len(weights) // len(ids)
    for place, channel in enumerate(ids):
        if channel in channels:
            blocks.setdefault(channel, []).extend(range(place * size, (place + 1) * size))
    energy = max(float((weights * (moments @ weights)).sum()), 1e-30) / max(gain, 1e-12)
    inverse = as_matrix(np.linalg.inv(shrunk(moments, found.rows)))
    return _Reader(weights, inverse, found.halves, found.rows, blocks, energy)


def shrunk(moments: Matrix, rows: int) -> Matrix:
    """Moments that can be inverted: the fewer rows they are from, the more of them is put on the diagonal."""
    share = 1e-3 + 0.1 * len(moments) / max(1, rows)
    floor = 1e-6 * float(np.trace(moments)) / len(moments) + 1e-12
    return moments + np.diag(share * np.diag(moments) + floor)


def _by_energy(group: Group, readers: Sequence[_Reader]) -> Removal:
    scores = dict.fromkeys(group.channels, 0.0)
    for reader in readers:
        for channel, block in reader.blocks.items():
            part = reader.weights[block]
            scores[channel] += (
                float((part * ((reader.halves[0] + reader.halves[1])[np.ix_(block, block)] @ part)).sum())
                / reader.energy
            )
    return _by_score(group, scores)


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
