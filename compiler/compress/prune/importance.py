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
from compiler.compress.prune.redundancy import Reader, order_by_redundancy
from compiler.compress.prune.rows import Layer, layer_of
from compiler.compress.prune.sensitivity import output_losses
from compiler.compress.threads import in_parallel
from compiler.passes.values import constant_of

Measure: TypeAlias = Literal["weights", "activations", "sensitivity", "redundancy"]

MOMENT_BYTES = 1 << 30
"""Largest size of all second moments in memory at a time."""

_GROUPS_AT_ONCE = 4
"""Groups that are ordered side by side: each holds some matrices of the size of its moments."""


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

    def ordered(group: Group, reads: Reads) -> Removal:
        channels = {*group.channels}
        return order(
            group,
            [_reader(model, layer, ids, channels, moments[layer.weights], gains[layer.node]) for layer, ids in reads],
        )

    removals: list[Removal] = []
    gains = error_gains(model, [layer for group in groups for layer, _ in _reads(model, ties, group)], batches())
    for run in _affordable(model, ties, groups):
        moments = gather_moments(model, [layer for _, reads in run for layer, _ in reads], batches)
        removals += in_parallel(lambda task: ordered(*task), run, most=_GROUPS_AT_ONCE)
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
) -> Reader:
    weights = layer.matrix(np.asarray(constant_of(model.graph.initializers[layer.weights])))
    moments = moments_of_layer.halves[0] + moments_of_layer.halves[1]
    blocks: dict[int, list[int]] = {}
    size = len(weights) // len(ids)
    for place, channel in enumerate(ids):
        if channel in channels:
            blocks.setdefault(channel, []).extend(range(place * size, (place + 1) * size))
    energy = max(float((weights * (moments @ weights)).sum()), 1e-30) / max(gain, 1e-12)
    return Reader(weights, moments_of_layer.halves, moments_of_layer.rows, blocks, energy)


def _by_energy(group: Group, readers: Sequence[Reader]) -> Removal:
    scores = dict.fromkeys(group.channels, 0.0)
    for reader in readers:
        for channel, block in reader.blocks.items():
            part = reader.weights[block]
            scores[channel] += (
                float((part * ((reader.halves[0] + reader.halves[1])[np.ix_(block, block)] @ part)).sum())
                / reader.energy
            )
    return _by_score(group, scores)


def _by_redundancy(group: Group, readers: Sequence[Reader]) -> Removal:
    order, errors = order_by_redundancy(group.channels, readers)
    return Removal(group, tuple(order), tuple(errors))
