"""Dependency groups: which channels of a graph can be cut, and what each cut takes along (DepGraph, Fang et al. 2023).

Channels are atoms. Each operator's rule maps the atoms along the axes of its inputs to its outputs, ties those that are
combined, and notes which constants are cut with them. Channels that reach an operator without a rule are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.compress.prune import rules_layers as layers
from compiler.compress.prune import rules_shapes as shapes
from compiler.compress.prune.atoms import Ids
from compiler.compress.prune.walk import Count, Cut, Labels, Walk
from compiler.passes.values import display_name

_SAME = """
    Relu LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Swish Mish Elu Celu Selu Gelu Erf Exp Log Sqrt Abs Neg
    Softplus Softsign Clip Identity Dropout Cast Reciprocal ThresholdedRelu Sign Floor Ceil Round Sin Cos Not IsNaN
"""
_ELEMENTWISE = "Add Sub Mul Div Pow Max Min Sum Mean Where Greater Less Equal GreaterOrEqual LessOrEqual And Or PRelu"
_POOLS = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"
_REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp"

RULES: Mapping[str, Callable[[Walk, ir.Node], bool]] = {
    **dict.fromkeys(_SAME.split(), shapes.same),
    **dict.fromkeys(_ELEMENTWISE.split(), shapes.elementwise),
    **dict.fromkeys(_POOLS.split(), shapes.pool),
    **dict.fromkeys(_REDUCTIONS.split(), shapes.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shapes.reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"), shapes.over_axis),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), layers.per_channel_normalization),
    "Attention": layers.attention,
    "Concat": shapes.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "Pad": shapes.pad,
    "Slice": shapes.slice_,
    "Split": shapes.split,
    "Transpose": shapes.transpose,
}


@dataclass(frozen=True)
class Group:
    """Channels of one layer, and all channels of other layers that are cut with them.

    Args:
        name: Display name of the first layer that makes them.
        channels: Numbers of its classes, in the order of that layer: the units that can be cut.
        makers: Display names of the layers that make them.
        readers: Display names of the layers that read them.
    """

    name: str
    channels: tuple[int, ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Ties:
    """Dependencies between the channels of one graph.

    Args:
        groups: Channels that can be cut, in graph order.
        kept: Layer → why its output channels cannot be cut.
        cuts: Axes of initializers; their ids are class numbers.
        counts: Numbers in the graph that count channels.
        labels: Value → axis → class number at every position.
    """

    groups: tuple[Group, ...]
    kept: Mapping[str, str]
    cuts: tuple[Cut, ...]
    counts: tuple[Count, ...]
    labels: Mapping[str, Labels]


def find_ties(model: ir.Model) -> Ties:
    """Follows every channel from the layer that makes it to the layers that read it.

    Args:
        model: Shapes known, constants as initializers; left as it is.
    """
    walk = Walk()
    for node in model.graph:
        # the domain first: a rule marks cuts as it goes, and another domain's Conv shares only the name with ONNX's
        is_onnx = node.domain in ("", "ai.onnx")
        if not (is_onnx and RULES.get(node.op_type, _no_rule)(walk, node)):
            walk.fix_inputs(node, f"{node.op_type} '{display_name(node)}' mixes channels in a way that is not known")
    # the shapes of outputs are part of the model's interface
    for output in model.graph.outputs:
        walk.fix(walk.of(output), f"it is the model's output '{output.name}'")
    _tie_shared(walk, model)
    return _settled(walk)


def _no_rule(walk: Walk, node: ir.Node) -> bool:
    return False


def _tie_shared(walk: Walk, model: ir.Model) -> None:
    """A constant with several readers is cut alike for all of them, or not at all."""
    by_name: dict[str, list[Cut]] = {}
    for cut in walk.cuts:
        by_name.setdefault(cut.initializer, []).append(cut)
    for name, cuts in by_name.items():
        value = model.graph.initializers[name]
        readers = {(str(node.outputs[0].name), index) for node, index in value.uses()}
        axes = [{cut.axis for cut in cuts if cut.node == node} for node in {cut.node for cut in cuts}]
        if readers - walk.used or any(cut_axes != axes[0] for cut_axes in axes):
            for cut in cuts:
                walk.atoms.fix(cut.ids, f"the constant '{name}' is shared with another use")
            continue
        for axis in axes[0]:
            first, *others = [cut.ids for cut in cuts if cut.axis == axis]
            for ids in others:
                walk.atoms.tie(first, ids)


def _settled(walk: Walk) -> Ties:
    root = walk.atoms.roots
    cuts = tuple(Cut(c.initializer, c.axis, root(c.ids), c.role, c.node) for c in walk.cuts)
    counts = tuple(Count(c.output, c.place, c.element, root(c.ids), c.per) for c in walk.counts)
    labels = {
        name: {axis: root(ids) for axis, ids in by_axis.items()} for name, by_axis in walk.labels.items() if by_axis
    }
    uncut: dict[str, str] = {}
    free: list[Cut] = []
    for cut in cuts:
        if cut.role == "makes":
            reasons = [reason for atom in dict.fromkeys(cut.ids.tolist()) if (reason := walk.atoms.reason(atom))]
            if reasons:
                uncut[cut.node] = reasons[0]
            if len(reasons) < len({*cut.ids.tolist()}):
                free.append(cut)
    return Ties(tuple(_groups(free, cuts, walk)), uncut, cuts, counts, labels)


def _groups(free: list[Cut], cuts: Iterable[Cut], walk: Walk) -> Iterable[Group]:
    """One group per set of makers whose channels are tied to each other."""
    rest = list(free)
    while rest:
        members, channels = [rest.pop(0)], set[int]()
        grown = True
        while grown:
            channels = {int(atom) for cut in members for atom in cut.ids if not walk.atoms.reason(int(atom))}
            joined = [cut for cut in rest if not channels.isdisjoint(cut.ids.tolist())]
            members, rest = members + joined, [cut for cut in rest if not any(cut is member for member in joined)]
            grown = bool(joined)
        order = dict.fromkeys(int(atom) for cut in members for atom in cut.ids if int(atom) in channels)
        yield Group(
            members[0].node,
            tuple(order),
            tuple(dict.fromkeys(cut.node for cut in members)),
            tuple(dict.fromkeys(c.node for c in cuts if c.role == "reads" and not channels.isdisjoint(c.ids.tolist()))),
        )


def positions(ids: Ids, removed: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which positions along an axis are kept."""
    return ~np.isin(ids, np.fromiter(removed, dtype=np.int64))
