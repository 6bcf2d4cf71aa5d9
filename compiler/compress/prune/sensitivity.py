"""Error of the model's outputs when one channel alone is missing; to first order, errors of several channels add up.

Each value that a layer reads is multiplied by a mask of its channels, which is an input of the model: one session
serves all channels, with one run for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.atoms import Ids
from compiler.compress.prune.groups import Group, Ties
from compiler.compress.prune.rows import layer_of, squares
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.values import Names

BATCHES = 1
"""Batches of calibration data: each channel is a run over them, and only the order counts."""


def output_losses(model: ir.Model, ties: Ties, groups: Sequence[Group], batches: Iterable[Arrays]) -> dict[int, float]:
    """Channel → squared error of the model's outputs without it, as a share of their energy.

    Args:
        model: The model the ties were found in; left as it is.
        ties: Its ties.
        groups: The groups whose channels are asked for.
        batches: Calibration data; the first few are used.
    """
    copy, masks = _masked(model, ties)
    session = Unoptimized(copy)
    inputs = list(islice(batches, BATCHES))
    all_channels = {name: np.ones(shape, np.float32) for name, (_, shape) in masks.items()}
    expected = [session.run({**arrays, **all_channels}) for arrays in inputs]
    energy = max(sum(squares(array) for arrays in expected for array in arrays.values()), 1e-30)
    losses = {}
    for channel in (channel for group in groups for channel in group.channels):
        without = {name: _mask(ids, shape, channel) for name, (ids, shape) in masks.items() if channel in ids}
        masked = [session.run({**arrays, **all_channels, **without}) for arrays in inputs]
        error = sum(
            squares(np.subtract(after[name], before[name], dtype=np.float64))
            for before, after in zip(expected, masked, strict=True)
            for name in before
        )
        losses[channel] = error / energy
    return losses


def _masked(model: ir.Model, ties: Ties) -> tuple[ir.Model, dict[str, tuple[Ids, tuple[int, ...]]]]:
    """The model with masked layer inputs, and channels and shape of each mask."""
    copy = model.clone()
    names = Names(copy)
    masks: dict[str, tuple[Ids, tuple[int, ...]]] = {}
    for node in list(copy.graph):
        layer, source = layer_of(node), node.inputs[0] if node.inputs else None
        if layer is None or source is None or source.shape is None:
            continue
        axis = 1 if layer.kernel else len(source.shape) - 1
        ids = ties.labels.get(str(source.name), {}).get(axis)
        if ids is None:
            continue
        shape = (len(ids), *(1 for _ in range(len(source.shape) - axis - 1)))
        mask = ir.val(names.fresh(f"{source.name}_mask"), ir.DataType.FLOAT, shape)
        copy.graph.inputs.append(mask)
        product = ir.node("Mul", [source, mask], name=names.fresh(f"{source.name}_masking"))
        product.outputs[0].name = names.fresh(f"{source.name}_masked")
        product.outputs[0].type, product.outputs[0].shape = source.type, source.shape
        copy.graph.insert_before(node, product)
        node.replace_input_with(0, product.outputs[0])
        masks[str(mask.name)] = (ids, shape)
    return copy, masks


def _mask(ids: Ids, shape: tuple[int, ...], channel: int) -> Array:
    mask: Array = np.asarray(ids != channel, np.float32).reshape(shape)
    return mask
