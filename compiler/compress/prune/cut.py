"""Cuts channels out of a graph: constants are sliced, channel counts and shapes corrected."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.groups import Ties, positions
from compiler.compress.prune.walk import Count, Cut
from compiler.model.graph import add_constant
from compiler.passes.values import Names, constant_of


def cut_channels(model: ir.Model, ties: Ties, removed: Collection[int]) -> ir.Model:
    """A copy of the model without the channels of these classes.

    Args:
        model: The model the ties were found in; left as it is.
        ties: Its ties.
        removed: Class numbers, out of the groups' `channels`.

    Raises:
        ValueError: A class cannot be cut, or a group would lose all of its channels.
    """
    if problem := why_not(ties, removed):
        raise ValueError(problem)
    copy = model.clone()
    # ids are those of the full width, and each axis is sliced once, so the order of cuts does not matter
    for cut in _per_axis(ties):
        _slice(copy.graph.initializers[cut.initializer], cut.axis, positions(cut.ids, removed))
    names = Names(copy)
    nodes = {str(node.outputs[0].name): node for node in copy.graph}
    for count in ties.counts:
        _recount(copy, nodes[count.output], count, int(positions(count.ids, removed).sum()), names)
    for node in copy.graph:
        for value in node.outputs:
            for axis, ids in ties.labels.get(str(value.name), {}).items():
                _narrow(value, axis, int(positions(ids, removed).sum()))
    return copy


def why_not(ties: Ties, removed: Collection[int]) -> str:
    """Why these classes cannot be cut together; empty if they can."""
    free = {channel for group in ties.groups for channel in group.channels}
    if unknown := sorted({*removed} - free):
        return f"these channels cannot be cut: {unknown[:10]}"
    for cut in ties.cuts:
        if cut.role == "makes" and not positions(cut.ids, removed).any():
            return f"'{cut.node}' would lose all of its {len(cut.ids)} channels"
    return ""


def _per_axis(ties: Ties) -> list[Cut]:
    """Each axis of each initializer once, even if several nodes read it."""
    return list({(cut.initializer, cut.axis): cut for cut in ties.cuts}.values())


def _slice(value: ir.Value, axis: int, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    if not mask.all():
        _set(value, np.compress(mask, np.asarray(constant_of(value)), axis=axis))


def _set(value: ir.Value, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), dtype=value.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _recount(model: ir.Model, node: ir.Node, count: Count, channels: int, names: Names) -> None:
    """Writes the number into a new constant: another node may use the old one for something else."""
    if isinstance(count.place, str):
        node.attributes[count.place] = ir.AttrInt64(count.place, channels // count.per)
        return
    old = node.inputs[count.place]
    array = np.array(constant_of(old))
    if array[count.element] == channels:
        return
    array[count.element] = channels
    name = names.fresh(f"{old.name if old else ''}_kept")
    node.replace_input_with(count.place, add_constant(model.graph, name, array.astype(np.int64)))
    if old is not None and not old.uses() and str(old.name) in model.graph.initializers:
        del model.graph.initializers[str(old.name)]


def _narrow(value: ir.Value, axis: int, size: int) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([size if index == axis else old for index, old in enumerate(value.shape)])
