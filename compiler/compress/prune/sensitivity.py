"""What the model's outputs lose when one channel alone is missing: to first order, losses of several channels add up.

Every value that a layer reads is multiplied by a mask of its channels, which is an input of the model: so one session
tells the loss of every channel. It takes as many runs as there are channels.
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
"""Of the calibration data: the order is what counts, and every channel is a run over them."""


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
    whole = {name: np.ones(shape, np.float32) for name, (_, shape) in masks.items()}
    wanted = [session.run({**one, **whole}) for one in inputs]
    energy = max(sum(squares(array) for one in wanted for array in one.values()), 1e-30)
    losses = {}
    for channel in (channel for group in groups for channel in group.channels):
        without = {name: _mask(ids, shape, channel) for name, (ids, shape) in masks.items() if channel in ids}
        found = [session.run({**one, **whole, **without}) for one in inputs]
        error = sum(
            squares(np.subtract(after[name], before[name], dtype=np.float64))
            for before, after in zip(wanted, found, strict=True)
            for name in before
        )
        losses[channel] = error / energy
    return losses


def _masked(model: ir.Model, ties: Ties) -> tuple[ir.Model, dict[str, tuple[Ids, tuple[int, ...]]]]:
    """The model with a mask on what its layers read, and of every mask the channels and the shape."""
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
    kept: Array = np.asarray(ids != channel, np.float32).reshape(shape)
    return kept
