"""select-branches: for a target without If, both branches are computed, and Where takes the result of one.

    y = If(c) {then: a} {else: b}   →   y = Where(c, a, b)

where both give one type and shape, and neither can fail when it is not the one to run: no index that is computed, no
integer that is divided by a computed one, no shape that is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.model.graph import PassResult, add_constant
from compiler.passes.decompose_operators import Refuses
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import RANDOM_OPERATORS
from compiler.passes.take_branches import move_in, repeated_names
from compiler.passes.values import Names, constant_tensor, display_name, graphs_of, record_origin

_BY_INDEX = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElements": 1,
    "ScatterND": 1,
    "Reshape": 1,
    "Expand": 1,
    "Slice": 1,
    "Tile": 1,
    "Pad": 1,
    "ConstantOfShape": 0,
    "Range": 1,
}
"""Operator → the input that must be a constant: an index or a size that is only right where the branch is taken."""

_DIVIDES = frozenset({"Div", "Mod"})


@dataclass(frozen=True)
class SelectBranches:
    """The pass.

    Args:
        refuses: What the target says of a node.
    """

    refuses: Refuses
    name: str = "select-branches"

    def __call__(self, model: ir.Model) -> PassResult:
        """Works on every graph, the innermost first; notes say what was selected, and which If stays and why."""
        notes, modified = list[str](), False
        for graph in reversed(list(graphs_of(model))):
            for node in list(graph):
                if node.op_type != "If" or node.domain != "" or not self.refuses(node):
                    continue
                if reason := next(_reasons(node), ""):
                    notes.append(f"{display_name(node)}: the If stays: {reason}")
                    continue
                _select(graph, node, model)
                notes.append(f"{display_name(node)}: both branches are computed, and one is chosen")
                modified = True
        if modified:
            infer_shapes(model)
        return PassResult(modified, tuple(notes))


def _branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    return node.attributes["then_branch"].as_graph(), node.attributes["else_branch"].as_graph()


def _reasons(node: ir.Node) -> Iterator[str]:
    """Why an If cannot be computed as both of its branches."""
    then, other = _branches(node)
    for left, right in zip(then.outputs, other.outputs, strict=True):
        if left.dtype is None or left.dtype != right.dtype or not _same_sizes(left.shape, right.shape):
            yield f"its branches give {left.dtype} {left.shape} and {right.dtype} {right.shape}"
    for inner in (*then.all_nodes(), *other.all_nodes()):
        if inner.op_type in RANDOM_OPERATORS or inner.op_type == "If" or inner.domain not in ("", "ai.onnx"):
            yield f"it holds {inner.op_type} '{display_name(inner)}'"
        elif _may_fail(inner):
            yield f"{inner.op_type} '{display_name(inner)}' may fail where its branch is not taken"


def _same_sizes(left: ir.Shape | None, right: ir.Shape | None) -> bool:
    """Whether two shapes are known to be the same: Where would otherwise broadcast one to the other."""
    if left is None or right is None:
        return False
    return left == right and all(isinstance(dim, int) or dim.value is not None for dim in left)


def _may_fail(node: ir.Node) -> bool:
    place = _BY_INDEX.get(node.op_type)
    if node.op_type in _DIVIDES and node.outputs[0].dtype is not None and node.outputs[0].dtype.is_integer():
        place = 1
    return place is not None and len(node.inputs) > place and constant_tensor(node.inputs[place]) is None


def _select(graph: ir.Graph, node: ir.Node, model: ir.Model) -> None:
    names, repeated = Names(model), repeated_names(model)
    first, second = (move_in(graph, node, branch, names, repeated)[0] for branch in _branches(node))
    condition = _scalar(graph, node, names)
    for old, left, right in zip(list(node.outputs), first, second, strict=True):
        where = ir.node("Where", [condition, left, right], name=names.fresh(f"{display_name(node)}.Where"))
        record_origin(where, [node])
        graph.insert_before(node, [where])
        new = where.outputs[0]
        new.type, new.shape = left.type, left.shape
        new.name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _scalar(graph: ir.Graph, node: ir.Node, names: Names) -> ir.Value | None:
    """The condition as a scalar: of one element in any rank it would raise the rank of what Where gives."""
    condition = node.inputs[0]
    if condition is None or (condition.shape is not None and not len(condition.shape)):
        return condition
    empty = add_constant(graph, names.fresh(f"{display_name(node)}.scalar"), np.zeros(0, np.int64))
    reshaped = ir.node("Reshape", [condition, empty], name=names.fresh(f"{display_name(node)}.Reshape"))
    result = reshaped.outputs[0]
    result.name, result.type, result.shape = names.fresh(f"{condition.name}_scalar"), condition.type, ir.Shape([])
    record_origin(reshaped, [node])
    graph.insert_before(node, [reshaped])
    return result
