"""merge-transposes: consecutive Transposes become one, or none.

1. Transpose(Transpose(x, p), q) = Transpose(x, p∘q), with (p∘q)[i] = p[q[i]]
2. Transpose(x, identity) = x
The inner Transpose stays where another node reads it too.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.remove_identities import become_identity, bypass
from compiler.passes.values import graphs_of, record_origin, replace_input


def merge_transposes(model: ir.Model) -> PassResult:
    """Merges in the main graph and in subgraphs; one forward sweep sees each chain from its front."""
    return PassResult(any([_merge(graph, node) for graph in graphs_of(model) for node in graph]))


def _merge(graph: ir.Graph, node: ir.Node) -> bool:
    permutation = _permutation(node)
    if permutation is None:
        return False
    merged = _skip_inner(graph, node, permutation)
    return _drop_if_identity(graph, node, _permutation(node)) or merged


def _skip_inner(graph: ir.Graph, node: ir.Node, outer: list[int]) -> bool:
    middle = node.inputs[0]
    inner_node = None if middle is None else middle.producer()
    if inner_node is None or inner_node.graph is not graph:
        return False
    inner, source = _permutation(inner_node), inner_node.inputs[0] if inner_node.inputs else None
    if inner is None or source is None or len(inner) != len(outer):
        return False
    node.attributes["perm"] = ir.AttrInt64s("perm", [inner[axis] for axis in outer])
    record_origin(node, [node, inner_node])
    replace_input(node, 0, source)
    return True


def _drop_if_identity(graph: ir.Graph, node: ir.Node, permutation: list[int] | None) -> bool:
    source = node.inputs[0]
    if source is None or permutation is None or permutation != list(range(len(permutation))):
        return False
    if not bypass(graph, node, source):
        become_identity(graph, node, source)
    return True


def _permutation(node: ir.Node) -> list[int] | None:
    """The axes, spelled out; None if it is no Transpose or reverses a rank that is not known."""
    if node.op_type != "Transpose" or node.domain != "":
        return None
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return None if attribute.is_ref() else list(attribute.as_ints())
    source = node.inputs[0]
    return None if source is None or source.shape is None else list(reversed(range(len(source.shape))))


MERGE_TRANSPOSES = FunctionPass("merge-transposes", merge_transposes)
