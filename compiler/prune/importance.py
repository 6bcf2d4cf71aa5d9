"""What a channel is worth, and in which order a group's channels go: by weights, by what they carry, by redundancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from compiler.passes.values import constant_of
from compiler.prune.groups import Group, Ties
from compiler.prune.repair import RIDGE, Batches
from compiler.prune.rows import Layer, Matrix, layer_of, sample_rows
from compiler.prune.tap import watch

Measure: TypeAlias = Literal["weights", "activations", "redundancy"]

PER_ITEM = 48
"""Places of one image that a layer is looked at."""


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
    """One layer that reads the group: its weights (K, N), the inverse of its inputs' moments (K, K), its energy."""

    weights: Matrix
    inverse: Matrix
    moments: Matrix
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
    moments, total, rows = np.zeros((len(weights), len(weights))), np.zeros(len(weights)), 0
    random = np.random.default_rng(0)
    for read, given in watch(model, [layer.source, layer.node], batches()):
        x, _ = sample_rows(layer, read, given, per_item=PER_ITEM, random=random)
        moments += x.T @ x
        total += x.sum(axis=0)
        rows += len(x)
    if layer.bias:
        moments -= np.outer(total, total) / max(1, rows)
    ridge = RIDGE * float(np.trace(moments)) / len(moments) + 1e-12
    blocks: dict[int, list[int]] = {}
    size = len(weights) // len(ids)
    for place, channel in enumerate(ids):
        if channel in channels:
            blocks.setdefault(channel, []).extend(range(place * size, (place + 1) * size))
    inverse = np.linalg.inv(moments + ridge * np.eye(len(moments)))
    return _Reader(weights, inverse, moments, blocks, max(float((weights * (moments @ weights)).sum()), 1e-30))


def _by_energy(group: Group, readers: Sequence[_Reader]) -> Removal:
    scores = dict.fromkeys(group.channels, 0.0)
    for reader in readers:
        for channel, block in reader.blocks.items():
            part = reader.weights[block]
            scores[channel] += float((part * (reader.moments[np.ix_(block, block)] @ part)).sum()) / reader.energy
    order = sorted(group.channels, key=lambda channel: (scores[channel], channel))
    return Removal(group, tuple(order), tuple(np.cumsum([scores[channel] for channel in order]).tolist()))


def _by_redundancy(group: Group, readers: Sequence[_Reader]) -> Removal:
    left, order, errors, error = list(group.channels), [], [], 0.0
    while left:
        costs = sum((_costs(reader, left) for reader in readers), np.zeros(len(left)))
        best = int(np.argmin(costs))
        error += float(costs[best])
        order.append(left.pop(best))
        errors.append(error)
        for reader in readers:
            _remove(reader, reader.blocks.get(order[-1], []))
    return Removal(group, tuple(order), tuple(errors))


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
