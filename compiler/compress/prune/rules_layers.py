"""Rules for channels through layers with weights: convolutions, matrix products, attention, normalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.atoms import Ids
from compiler.compress.prune.walk import Labels, Walk, sizes, weight


def conv(walk: Walk, node: ir.Node) -> bool:
    """Weights (O, I/groups, …); with one group the channels of both sides are free, with more they are tied."""
    weights = weight(node, 1)
    if weights is None or len(walk.of(node.inputs[0]).keys() - {1}) > 0:
        return False
    groups, ids = node.attributes.get_int("group", 1), walk.of(node.inputs[0]).get(1)
    made: Ids | None
    if groups == 1:
        made = _plain(walk, node, weights.shape, ids)
    elif weights.shape[1] == 1:
        made = _depthwise(walk, node, weights.shape[0], groups, ids)
    else:
        made = _grouped(walk, node, weights.shape, groups, ids)
    if made is None:
        return True
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if weight(node, 2) is None:
            walk.atoms.fix(made, f"the bias of '{node.name}' is computed at run time")
        else:
            walk.cut(node, 2, 0, made, "follows")
    walk.give(node.outputs[0], {1: made})
    return True


def _plain(walk: Walk, node: ir.Node, shape: tuple[int, ...], ids: Ids | None) -> Ids:
    if ids is not None:
        walk.cut(node, 1, 1, ids, "reads")
    made = walk.atoms.fresh(shape[0])
    walk.cut(node, 1, 0, made, "makes")
    return made


def _depthwise(walk: Walk, node: ir.Node, made: int, groups: int, read: Ids | None) -> Ids | None:
    """Each channel has its own filter: output channels are tied to input channels."""
    if read is None:
        return None
    ids = np.repeat(read, made // groups)
    walk.cut(node, 1, 0, ids, "follows")
    walk.count(node, "group", 0, read)
    return ids


def _grouped(walk: Walk, node: ir.Node, shape: tuple[int, ...], groups: int, read: Ids | None) -> Ids:
    """All groups lose their i-th channel or none does: groups stay equal in size."""
    if read is not None:
        rows = read.reshape(groups, -1)
        for row in rows[1:]:
            walk.atoms.tie(rows[0], row)
        walk.cut(node, 1, 1, rows[0], "reads")
    made = np.tile(walk.atoms.fresh(shape[0] // groups), groups)
    walk.cut(node, 1, 0, made, "makes")
    return made


def conv_transpose(walk: Walk, node: ir.Node) -> bool:
    """Weights (I, O, …), one group only."""
    weights = weight(node, 1)
    if weights is None or node.attributes.get_int("group", 1) != 1 or walk.of(node.inputs[0]).keys() - {1}:
        return False
    if (ids := walk.of(node.inputs[0]).get(1)) is not None:
        walk.cut(node, 1, 0, ids, "reads")
    made = walk.atoms.fresh(weights.shape[1])
    walk.cut(node, 1, 1, made, "makes")
    if weight(node, 2) is not None:
        walk.cut(node, 2, 0, made, "follows")
    elif len(node.inputs) > 2 and node.inputs[2] is not None:
        walk.atoms.fix(made, f"the bias of '{node.name}' is computed at run time")
    walk.give(node.outputs[0], {1: made})
    return True


def gemm(walk: Walk, node: ir.Node) -> bool:
    """A (M, K) times constant B (K, N), plus C."""
    weights = weight(node, 1)
    if weights is None or node.attributes.get_int("transA", 0) != 0:
        return False
    flipped = node.attributes.get_int("transB", 0) != 0
    made = _product(walk, node, weights.shape[0 if flipped else 1], (1, 0) if flipped else (0, 1), rank=2)
    bias = weight(node, 2)
    if bias is not None and bias.ndim and bias.shape[-1] == len(made) and bias.size == len(made):
        walk.cut(node, 2, bias.ndim - 1, made, "follows")
    elif bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        walk.fix(walk.of(node.inputs[2]), f"it is the addend of '{node.name}'")
        walk.atoms.fix(made, f"the addend of '{node.name}' is computed at run time")
    elif bias is not None and bias.size != 1:
        walk.atoms.fix(made, f"the addend of '{node.name}' is a matrix")
    return True


def matmul(walk: Walk, node: ir.Node) -> bool:
    """A (…, K) times constant B (K, N); or of two computed tensors, whose inner dimension is never cut."""
    weights = weight(node, 1)
    left = sizes(node.inputs[0])
    if weights is not None and weights.ndim == 2 and left is not None and len(left) > 1:
        _product(walk, node, weights.shape[1], (0, 1), rank=len(left))
        return True
    right = sizes(node.inputs[1])
    if left is None or right is None or len(left) != len(right) or len(left) < 3:
        return False
    return weights is None and weight(node, 0) is None and _two_computed(walk, node, left, right)


def _product(walk: Walk, node: ir.Node, columns: int, axes: tuple[int, int], *, rank: int) -> Ids:
    labels: Labels = dict(walk.of(node.inputs[0]))
    if (ids := labels.pop(rank - 1, None)) is not None:
        walk.cut(node, 1, axes[0], ids, "reads")
    made = walk.atoms.fresh(columns)
    walk.cut(node, 1, axes[1], made, "makes")
    walk.give(node.outputs[0], {**labels, rank - 1: made})
    return made


def _two_computed(walk: Walk, node: ir.Node, left: tuple[int | str, ...], right: tuple[int | str, ...]) -> bool:
    rank, (a, b) = len(left), (dict(walk.of(node.inputs[0])), dict(walk.of(node.inputs[1])))
    for ids in (a.pop(rank - 1, None), b.pop(rank - 2, None)):
        if ids is not None:
            walk.atoms.fix(ids, f"it is the inner dimension of '{node.name}', a product of two computed tensors")
    made: Labels = {}
    if rank - 2 in a:
        made[rank - 2] = a.pop(rank - 2)
    if rank - 1 in b:
        made[rank - 1] = b.pop(rank - 1)
    for axis in {*a, *b}:
        if left[axis] == right[axis] and axis in a and axis in b:
            walk.atoms.tie(a[axis], b[axis])
            made[axis] = a[axis]
        else:
            for labels in (a, b):
                walk.atoms.fix(labels.get(axis, ()), f"'{node.name}' repeats it")
    walk.give(node.outputs[0], made)
    return True


def attention(walk: Walk, node: ir.Node) -> bool:
    """Heads of query, key and value are cut together, whole; only what has one key head per query head."""
    inputs = [walk.of(value) for value in node.inputs[:3]]
    ranks = {len(shape) for value in node.inputs[:3] if (shape := sizes(value)) is not None}
    if any(output.name for output in node.outputs[1:]) or any(walk.of(value) for value in node.inputs[3:]):
        return False
    mask = sizes(node.inputs[3]) if len(node.inputs) > 3 else None
    if mask is not None and len(mask) > 2 and mask[-3] != 1:
        return False  # a mask for each head is not cut with the heads
    if ranks == {4} and all(set(labels) == {1} for labels in inputs):
        for labels in inputs[1:]:
            if len(labels[1]) != len(inputs[0][1]):
                return False
            walk.atoms.tie(inputs[0][1], labels[1])
        walk.give(node.outputs[0], {1: inputs[0][1]})
        return True
    return ranks == {3} and all(set(labels) == {2} for labels in inputs) and _flat_heads(walk, node, inputs)


def _flat_heads(walk: Walk, node: ir.Node, inputs: list[Labels]) -> bool:
    heads = node.attributes.get_int("q_num_heads", 0)
    if not heads or heads != node.attributes.get_int("kv_num_heads", 0) or any(len(g[2]) % heads for g in inputs):
        return False
    first = inputs[0][2].reshape(heads, -1)[:, 0]
    for labels in inputs:
        rows = labels[2].reshape(heads, -1)
        for column in rows.T:
            walk.atoms.tie(first, column)
    for name in ("q_num_heads", "kv_num_heads"):
        walk.count(node, name, 0, first)
    walk.give(node.outputs[0], {2: inputs[2][2]})
    return True


def per_channel_normalization(walk: Walk, node: ir.Node) -> bool:
    """BatchNormalization, InstanceNormalization: parameters per channel, no dependence between channels."""
    labels = walk.of(node.inputs[0])
    count = len([value for value in node.inputs if value is not None])
    if labels.keys() - {1} or any(weight(node, index) is None for index in range(1, count)):
        return False
    for index in range(1, count):
        if 1 in labels:
            walk.cut(node, index, 0, labels[1], "follows")
    walk.give(node.outputs[0], dict(labels))
    return True
