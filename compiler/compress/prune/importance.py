"""Importance of channels: the order of removal within a group, and the error expected after each removal."""

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
"""Largest size of all second moments in memory at a time."""

STEPS = 8
"""Numbers of removed channels per group at which the held-out error is computed; it is interpolated between them."""


@dataclass(frozen=True)
class Removal:
    """The order in which the channels of a group are removed.

    Args:
        group: The group.
        order: Its channels, the least important first.
        errors: Expected squared error of the model's outputs after the first 1, 2, … channels are removed, as a share
            of their energy: the error of the readers' outputs times their gains; for `redundancy` after least-squares
            repair of the readers, for `weights` the squares of norms.
    """

    group: Group
    order: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass
class _Reader:
    """One layer that reads the group.

    Args:
        weights: Its weights (K, N); those of removed channels are zero, the others compensate for them.
        inverse: Inverse of its inputs' moments (K, K), shrunk towards their diagonal.
        halves: The moments of each half of the data, for two-fold cross-validation.
        rows: Number of rows in the moments.
        blocks: Channel → its rows of the weights.
        energy: Energy of its outputs over their error gain; errors are divided by it.
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
    """Orders the channels of groups; the data are read once for as many groups as their moments fit into memory.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        groups: Some of its groups.
        batches: Calibration data; `weights` does not read them.
        measure: `weights`, the L2 norm of what makes a channel (Li et al., Pruning Filters for Efficient ConvNets,
            2017); `activations`, the energy it carries into its readers; `sensitivity`, what the model's outputs lose
            without it, to first order (Molchanov et al., Importance Estimation for Neural Network Pruning, 2019;
            measured, since there is no graph of gradients); `redundancy`, the error that remains after least-squares
            compensation by the readers (Optimal Brain Compression, Frantar and Alistarh, 2022, with a channel's
            filter as the block), updated after every removal.
    """
    if measure == "weights":
        return tuple(_by_score(group, _norms(model, ties, group)) for group in groups)
    if measure == "sensitivity":
        losses = output_losses(model, ties, groups, batches())
        return tuple(_by_score(group, losses) for group in groups)
    order = _by_energy if measure == "activations" else _by_redundancy
    removals: list[Removal] = []
    gains = error_gains(model, [layer for group in groups for layer, _ in _reads(model, ties, group)], batches())
    for run in _affordable(model, ties, groups):
        moments = gather_moments(model, [layer for _, reads in run for layer, _ in reads], batches)
        for group, reads in run:
            readers = [
                _reader(model, layer, ids, {*group.channels}, moments[layer.weights], gains[layer.node])
                for layer, ids in reads
            ]
            removals.append(order(group, readers))
    return tuple(removals)


Reads: TypeAlias = Sequence[tuple[Layer, Sequence[int]]]
"""Layers that read a group, each with the channel at every position of its inputs."""


def _affordable(model: ir.Model, ties: Ties, groups: Sequence[Group]) -> Iterator[list[tuple[Group, Reads]]]:
    """Consecutive groups whose readers' moments fit into `MOMENT_BYTES`; one group at least."""
    run: list[tuple[Group, Reads]] = []
    size = 0
    for group in groups:
        reads = _reads(model, ties, group)
        # two halves in float64
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
    """Removal by increasing score; scores are additive."""
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
    model: ir.Model, layer: Layer, ids: Sequence[int], channels: set[int], moments_of_layer: Moments, gain: float
) -> _Reader:
    weights = layer.matrix(np.asarray(constant_of(model.graph.initializers[layer.weights])))
    moments = moments_of_layer.halves[0] + moments_of_layer.halves[1]
    blocks: dict[int, list[int]] = {}
    size = len(weights) // len(ids)
    for place, channel in enumerate(ids):
        if channel in channels:
            blocks.setdefault(channel, []).extend(range(place * size, (place + 1) * size))
    energy = max(float((weights * (moments @ weights)).sum()), 1e-30) / max(gain, 1e-12)
    inverse = as_matrix(np.linalg.inv(shrunk(moments, moments_of_layer.rows)))
    return _Reader(weights, inverse, moments_of_layer.halves, moments_of_layer.rows, blocks, energy)


def shrunk(moments: Matrix, rows: int) -> Matrix:
    """Moments shrunk towards their diagonal, so that they can be inverted: the fewer rows, the more."""
    # 0.1 K/R: the relative error of a covariance of K inputs from R rows grows like this; the floor keeps dead inputs
    # invertible
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
    originals = [reader.weights.copy() for reader in readers]
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
            errors.append(sum(_held_out(reader, w, order) for reader, w in zip(readers, originals, strict=True)))
    # more removed channels cannot err less: a decrease is noise of the estimate
    every = np.interp(np.arange(1, len(order) + 1), counts, np.maximum.accumulate(errors))
    return Removal(group, tuple(order), tuple(every.tolist()))


def _held_out(reader: _Reader, weights: Matrix, gone: Sequence[int]) -> float:
    """Cross-validated error without these channels: compensation is solved on one half, measured on the other."""
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
    """The error that the removal of each channel adds: tr(Wₛᵀ (H⁻¹ₛₛ)⁻¹ Wₛ), as a share of the energy."""
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
    """Removes a block: the other weights compensate for it, and its rows and columns of the inverse become zero."""
    if block:
        columns = reader.inverse[:, block]
        solved = np.linalg.solve(columns[block], np.concatenate([reader.weights[block], columns.T], axis=1))
        outputs = reader.weights.shape[1]
        reader.weights -= columns @ solved[:, :outputs]
        reader.inverse -= columns @ solved[:, outputs:]
