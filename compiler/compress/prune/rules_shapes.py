"""Rules for channels through operators without weights: element-wise, pools, Concat, Reshape and others."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.atoms import Ids
from compiler.compress.prune.reshape import reshaped
from compiler.compress.prune.walk import Labels, Walk, opset_of, sizes, weight
from compiler.passes.values import constant_of

_SOFTMAX_OVER_ONE_AXIS = 13
"""First opset whose softmax runs over its axis alone; before, it runs over that axis and all behind it."""


def same(walk: Walk, node: ir.Node) -> bool:
    """Unary element-wise operators: labels stay."""
    if any(walk.of(value) for value in node.inputs[1:]):
        return False
    walk.give(node.outputs[0], dict(walk.of(node.inputs[0])))
    return True


def pool(walk: Walk, node: ir.Node) -> bool:
    """Pools: each channel by itself."""
    return not walk.of(node.inputs[0]).keys() - {0, 1} and len(node.outputs) == 1 and same(walk, node)


def elementwise(walk: Walk, node: ir.Node) -> bool:
    """Binary operators with broadcasting: channels at one position are tied; a parameter per channel follows."""
    shapes = [sizes(value) for value in node.inputs]
    out = sizes(node.outputs[0])
    if out is None or any(shape is None for shape in shapes):
        return False
    known = [(index, tuple(shape)) for index, shape in enumerate(shapes) if shape is not None]
    made: Labels = {}
    for axis in range(len(out)):
        ids = [
            walk.of(node.inputs[index])[at]
            for index, shape in known
            if (at := axis - len(out) + len(shape)) in walk.of(node.inputs[index])
        ]
        if any(len(each) != out[axis] for each in ids):
            for each in ids:
                walk.atoms.fix(each, f"'{node.name}' repeats one of its operands")
        elif ids:
            made[axis] = ids[0]
            _meet(walk, node, axis, ids, known, out)
    walk.give(node.outputs[0], made)
    return True


def _meet(
    walk: Walk,
    node: ir.Node,
    axis: int,
    ids: list[Ids],
    known: list[tuple[int, tuple[int | str, ...]]],
    out: tuple[int | str, ...],
) -> None:
    for left, right in pairwise(ids):
        walk.atoms.tie(left, right)
    for index, shape in known:
        at = axis - len(out) + len(shape)
        value = node.inputs[index]
        if at < 0 or shape[at] == 1 or at in walk.of(value):
            continue
        if weight(node, index) is not None:
            walk.cut(node, index, at, ids[0], "follows")
        else:
            walk.atoms.fix(ids[0], f"'{node.name}' joins it with '{value.name if value else ''}', which is never cut")


def concat(walk: Walk, node: ir.Node) -> bool:
    """Concat: joins labels along its axis, ties them along the others."""
    out = sizes(node.outputs[0])
    if out is None:
        return False
    axis = node.attributes.get_int("axis", 0) % len(out)
    parts = [_part(walk, node, index, axis) for index in range(len(node.inputs))]
    if any(part is None for part in parts):
        return False
    labelled = any(axis in walk.of(value) for value in node.inputs)
    made: Labels = {axis: np.concatenate([part for part in parts if part is not None])} if labelled else {}
    for other in {key for value in node.inputs for key in walk.of(value)} - {axis}:
        ids = [walk.of(value)[other] for value in node.inputs if other in walk.of(value)]
        for left, right in pairwise(ids):
            walk.atoms.tie(left, right)
        if len(ids) < len(node.inputs):
            walk.atoms.fix(ids[0], f"'{node.name}' joins it with something that is never cut")
        made[other] = ids[0]
    walk.give(node.outputs[0], made)
    return True


def _part(walk: Walk, node: ir.Node, index: int, axis: int) -> Ids | None:
    value = node.inputs[index]
    if (known := walk.of(value).get(axis)) is not None:
        return known
    shape = sizes(value)
    if shape is None or not isinstance(shape[axis], int):
        return None
    ids = walk.atoms.fresh(int(shape[axis]))
    if weight(node, index) is not None:
        walk.cut(node, index, axis, ids, "follows")
    else:
        walk.atoms.fix(ids, f"'{node.name}' reads it from '{value.name if value else ''}', which is never cut")
    return ids


def split(walk: Walk, node: ir.Node) -> bool:
    """Every output gets its segment of the channels; the segments' lengths are counts."""
    labels, shape = walk.of(node.inputs[0]), sizes(node.inputs[0])
    if shape is None:
        return False
    axis = node.attributes.get_int("axis", 0) % len(shape)
    lengths = [made[axis] for value in node.outputs if (made := sizes(value)) is not None]
    if len(lengths) != len(node.outputs) or not all(isinstance(length, int) for length in lengths):
        return False
    rest = {key: ids for key, ids in labels.items() if key != axis}
    ends = np.cumsum([0, *(int(length) for length in lengths)])
    if axis in labels and weight(node, 1) is None:  # equal parts: every part loses its i-th channel
        rows = labels[axis].reshape(len(lengths), -1) if len({*lengths}) == 1 else None
        if rows is None:
            return False
        for row in rows[1:]:
            walk.atoms.tie(rows[0], row)
    for index, (start, end) in enumerate(pairwise(ends)):
        part = {axis: labels[axis][start:end]} if axis in labels else {}
        if part and weight(node, 1) is not None:
            walk.count(node, 1, index, part[axis])
        walk.give(node.outputs[index], {**rest, **part})
    return True


def slice_(walk: Walk, node: ir.Node) -> bool:
    """Slice of channels with constant ends and step 1; other axes are free."""
    labels, shape = walk.of(node.inputs[0]), sizes(node.inputs[0])
    bounds = [constant_of(value) if value is not None else None for value in node.inputs[1:]]
    if shape is None or len(bounds) < 2 or bounds[0] is None or bounds[1] is None:
        return False
    starts, ends = bounds[0].tolist(), bounds[1].tolist()
    axes = bounds[2].tolist() if len(bounds) > 2 and bounds[2] is not None else range(len(starts))
    steps = bounds[3].tolist() if len(bounds) > 3 and bounds[3] is not None else [1] * len(starts)
    made = dict(labels)
    for element, (start, end, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        at = axis % len(shape)
        if at not in labels:
            continue
        ids = labels[at]
        low, high, _ = slice(start, end, step).indices(len(ids))
        if step != 1 or weight(node, 1) is None or weight(node, 2) is None:
            return False
        walk.count(node, 1, element, ids[:low])
        walk.count(node, 2, element, ids[:high])
        made[at] = ids[low:high]
    walk.give(node.outputs[0], made)
    return True


def pad(walk: Walk, node: ir.Node) -> bool:
    """Pad: added channels are constant; cutting them means padding less."""
    labels, shape = walk.of(node.inputs[0]), sizes(node.inputs[0])
    amounts = weight(node, 1)
    if shape is None or amounts is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return False
    made = dict(labels)
    for axis, ids in labels.items():
        before, after = int(amounts[axis]), int(amounts[axis + len(shape)])
        if before < 0 or after < 0 or (node.attributes.get_string("mode", "constant") != "constant" and before + after):
            return False
        if before or after:
            front, back = walk.atoms.fresh(before), walk.atoms.fresh(after)
            walk.count(node, 1, axis, front)
            walk.count(node, 1, axis + len(shape), back)
            made[axis] = np.concatenate([front, ids, back])
    walk.give(node.outputs[0], made)
    return True


def transpose(walk: Walk, node: ir.Node) -> bool:
    """Transpose: labels move with their axes."""
    shape = sizes(node.inputs[0])
    if shape is None:
        return False
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(len(shape))))))
    labels = walk.of(node.inputs[0])
    walk.give(node.outputs[0], {new: labels[old] for new, old in enumerate(perm) if old in labels})
    return True


def reduce(walk: Walk, node: ir.Node) -> bool:
    """Reductions over other axes than those of the channels."""
    labels, shape, out = walk.of(node.inputs[0]), sizes(node.inputs[0]), sizes(node.outputs[0])
    if shape is None or out is None:
        return False
    axes = weight(node, 1)
    listed = list(node.attributes.get_ints("axes", ())) if axes is None else axes.tolist()
    gone = {axis % len(shape) for axis in listed} or set(range(len(shape)))
    walk.fix({axis: ids for axis, ids in labels.items() if axis in gone}, f"'{node.name}' reduces over it")
    remaining = [axis for axis in range(len(shape)) if len(out) == len(shape) or axis not in gone]
    walk.give(
        node.outputs[0],
        {remaining.index(axis): ids for axis, ids in labels.items() if axis in remaining and axis not in gone},
    )
    return True


def over_axis(walk: Walk, node: ir.Node) -> bool:
    """Softmax and layer normalisation: what they run over is never cut."""
    labels, shape = walk.of(node.inputs[0]), sizes(node.inputs[0])
    if shape is None:
        return False
    is_softmax, is_old = node.op_type in ("Softmax", "LogSoftmax"), opset_of(node) < _SOFTMAX_OVER_ONE_AXIS
    first = node.attributes.get_int("axis", 1 if is_softmax and is_old else -1) % len(shape)
    over = {first} if is_softmax and not is_old else set(range(first, len(shape)))
    walk.fix({axis: ids for axis, ids in labels.items() if axis in over}, f"'{node.name}' normalises over it")
    walk.give(node.outputs[0], dict(labels))
    return True


def reshape(walk: Walk, node: ir.Node) -> bool:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are merged and split; a split axis is cut in whole rows."""
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    labels = walk.of(node.inputs[0])
    if before is None or after is None:
        return False
    made = reshaped(walk.atoms, labels, before, after)
    if made is None:
        return False
    target = weight(node, 1) if node.op_type == "Reshape" else None
    if node.op_type == "Reshape" and labels:
        if target is None:
            return False
        for axis, ids in made.items():
            if int(target[axis]) > 0:
                walk.count(node, 1, axis, ids)
    walk.give(node.outputs[0], made)
    return True
