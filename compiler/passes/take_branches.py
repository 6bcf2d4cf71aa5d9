"""take-branches: an If whose condition is known is replaced by the branch that it takes.

A condition is known where it is a constant, or follows from sizes that are numbers. What it is computed of is folded
first, in subgraphs too, with the constants of the graphs around them. A branch that is taken may hold a condition of
its own, and shapes behind it become known, so all this is repeated until no condition is known any more.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.values import Names, display_name, graphs_of, record_origin, scalar_of

_BRANCHES = ("else_branch", "then_branch")
"""Attribute by condition: false, true."""


def take_branches(model: ir.Model) -> PassResult:
    """Takes branches in the main graph and in subgraphs; notes name what is still decided at run time."""
    if not any(_is_if(node) for node in model.graph.all_nodes()):
        return PassResult(False)
    modified = infer_shapes(model).modified | FOLD_CONSTANTS(model).modified
    while _take_known(model):
        infer_shapes(model)
        FOLD_CONSTANTS(model)
        modified = True
    left = [node for node in model.graph.all_nodes() if _is_if(node)]
    return PassResult(
        modified, tuple(f"{display_name(node)}: its condition is not known before it runs" for node in left)
    )


def _is_if(node: ir.Node) -> bool:
    return node.op_type == "If" and node.domain == ""


def _take_known(model: ir.Model) -> bool:
    """Takes every branch whose condition is known; what it holds is looked at in the next round."""
    names, repeated = Names(model), repeated_names(model)
    known = [
        (graph, node, int(condition))
        for graph in graphs_of(model)
        for node in graph
        if _is_if(node) and (condition := scalar_of(node.inputs[0])) is not None
    ]
    for graph, node, condition in known:
        if node.graph is graph:  # not inside a branch that was dropped just now
            _take(graph, node, condition, names, repeated)
    return bool(known)


def repeated_names(model: ir.Model) -> set[str]:
    """Names that stand in several graphs, as two branches may use the same: they clash when one is taken."""
    counts: Counter[str] = Counter()
    for graph in graphs_of(model):
        counts.update(str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            counts.update([str(node.name), *(str(value.name) for value in node.outputs)])
    return {name for name, count in counts.items() if count > 1}


def _take(graph: ir.Graph, node: ir.Node, condition: int, names: Names, repeated: set[str]) -> None:
    taken, dropped = (node.attributes[_BRANCHES[index]].as_graph() for index in (condition, 1 - condition))
    results, inner = move_in(graph, node, taken, names, repeated)
    for old, new in zip(node.outputs, results, strict=True):
        _hand_over(graph, node, old, new, inner=inner, names=names)
    release(dropped)
    graph.remove(node, safe=True)


def move_in(
    graph: ir.Graph, node: ir.Node, branch: ir.Graph, names: Names, repeated: set[str]
) -> tuple[list[ir.Value], list[ir.Node]]:
    """Moves what a branch holds in front of its If; returns what the branch gives, and the nodes moved."""
    results = list(branch.outputs)
    branch.outputs.clear()
    inner = list(branch)
    branch.remove(inner)
    for value in list(branch.initializers.values()):
        del branch.initializers[str(value.name)]
        _rename(value, names, repeated)
        graph.register_initializer(value)
    for moved in inner:
        if moved.name in repeated:
            moved.name = names.fresh(str(moved.name))
        for value in moved.outputs:
            _rename(value, names, repeated)
    graph.insert_before(node, inner)
    return results, inner


def _rename(value: ir.Value, names: Names, repeated: set[str]) -> None:
    if value.name in repeated:
        value.name = names.fresh(str(value.name))


def _hand_over(
    graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value, *, inner: list[ir.Node], names: Names
) -> None:
    """Lets readers of an output of the If read what the branch gave for it; a graph output keeps its name."""
    is_own = new.producer() in inner and not new.is_graph_output()
    if old.is_graph_output() and not is_own:
        identity = ir.node("Identity", [new], name=names.fresh(f"{display_name(node)}.Identity"))
        record_origin(identity, [node])
        graph.insert_before(node, [identity])
        new = identity.outputs[0]
    if old.is_graph_output():
        new.type, new.shape = old.type or new.type, old.shape if old.shape is not None else new.shape
        new.metadata_props.update(old.metadata_props)
        old.name, new.name = None, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def release(graph: ir.Graph) -> None:
    """Ends the uses that a graph which is dropped makes of values around it."""
    for node in graph.all_nodes():
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


TAKE_BRANCHES = FunctionPass("take-branches", take_branches)
