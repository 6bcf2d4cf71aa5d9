"""remove-identities: nodes whose output equals their input.

1. Identity; Concat, Sum, Max, Min, Mean of one input
2. x × 1, 1 × x, x ÷ 1, x + 0, 0 + x, x − 0 with a constant of one element that adds no dimension
3. Pad by nothing
A graph output keeps its name: the value in front takes it over, if a node of the same graph computes it and it is no
graph output itself. Otherwise only an Identity could stand there, so an Identity stays and anything else becomes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.values import constant_of, graphs_of, record_origin, scalar_of


def remove_identities(model: ir.Model) -> PassResult:
    """Removes them from the main graph and from subgraphs."""
    return PassResult(any([_remove(graph, node) for graph in graphs_of(model) for node in graph]))


def bypass(graph: ir.Graph, node: ir.Node, source: ir.Value) -> bool:
    """Lets everyone who reads the node's only output read `source` instead, and removes the node.

    Returns:
        False, with nothing changed, where the output is a graph output that `source` cannot stand in for.
    """
    old = node.outputs[0]
    producer = source.producer()
    if old.is_graph_output():
        if producer is None or source.graph is not graph or source.is_graph_output():
            return False
        record_origin(producer, [producer, node])
        old.name, source.name = None, old.name
        source.type, source.shape = old.type or source.type, old.shape if old.shape is not None else source.shape
        source.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _remove(graph: ir.Graph, node: ir.Node) -> bool:
    rule = _RULES.get(node.op_type) if node.domain == "" and len(node.outputs) == 1 else None
    source = None if rule is None else rule(node)
    if source is None or _types_differ(source, node.outputs[0]):
        return False
    if bypass(graph, node, source):
        return True
    if node.op_type == "Identity":
        return False
    become_identity(graph, node, source)
    return True


def become_identity(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Puts `Identity(source)` in the node's place, under the output's name."""
    identity = ir.node("Identity", [source], name=node.name, metadata_props=dict(node.metadata_props))
    record_origin(identity, [node])
    new, old = identity.outputs[0], node.outputs[0]
    new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    old.name, new.name = None, old.name
    graph.insert_before(node, [identity])
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _types_differ(source: ir.Value, old: ir.Value) -> bool:
    return source.dtype is not None and old.dtype is not None and source.dtype != old.dtype


def _only_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _unless(neutral: float, *, either: bool) -> Callable[[ir.Node], ir.Value | None]:
    """The other input, if one input is the neutral number; `either` if the operator commutes."""

    def other_input(node: ir.Node) -> ir.Value | None:
        left, right = node.inputs
        if _adds_no_dimension(right, left) and scalar_of(right) == neutral:
            return left
        return right if either and _adds_no_dimension(left, right) and scalar_of(left) == neutral else None

    return other_input


def _adds_no_dimension(neutral: ir.Value | None, x: ir.Value | None) -> bool:
    if neutral is None or x is None or neutral.shape is None or x.shape is None:
        return False
    return len(neutral.shape) <= len(x.shape)


def _unpadded(node: ir.Node) -> ir.Value | None:
    if "pads" in node.attributes:
        return None if any(node.attributes.get_ints("pads", (1,)) or (1,)) else node.inputs[0]
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.inputs[0] if pads is not None and not pads.any() else None


_RULES: Mapping[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _only_input,
    "Concat": _only_input,
    "Sum": _only_input,
    "Max": _only_input,
    "Min": _only_input,
    "Mean": _only_input,
    "Mul": _unless(1.0, either=True),
    "Div": _unless(1.0, either=False),
    "Add": _unless(0.0, either=True),
    "Sub": _unless(0.0, either=False),
    "Pad": _unpadded,
}

REMOVE_IDENTITIES = FunctionPass("remove-identities", remove_identities)
