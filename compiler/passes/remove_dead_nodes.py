"""remove-dead-nodes: removes nodes, initializers, functions and opset imports that no output depends on.

Nodes of ONNX have no side effects, so a node whose outputs are not read may be removed. A node with one live output
keeps all its outputs: which optional outputs exist can decide what the operator computes (BatchNormalization before
opset 14). An initializer that is a graph input or output stays.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.values import graphs_of


def remove_dead_nodes(model: ir.Model) -> PassResult:
    """Removes from the main graph, subgraphs and function bodies."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    removed = [_sweep(body) for body in bodies]
    removed += [_remove_initializers(graph) for graph in graphs_of(model)]
    functions = common.RemoveUnusedFunctionsPass()(model).modified  # type: ignore[no-untyped-call]
    opsets = _remove_opsets(model)
    return PassResult(any(removed) or functions or opsets)


def _sweep(body: ir.Graph | ir.Function) -> bool:
    modified = False
    for node in reversed(body):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            body.remove(node, safe=True)
            modified = True
            continue
        for graph in _bodies(node):
            modified |= _sweep(graph)
    return modified


def _bodies(node: ir.Node) -> list[ir.Graph]:
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


def _remove_initializers(graph: ir.Graph) -> bool:
    dead = [
        name
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input())
    ]
    for name in dead:
        del graph.initializers[name]
    return bool(dead)


def _remove_opsets(model: ir.Model) -> bool:
    """Drops imports that neither a node of the main graph, a subgraph nor a function's name needs."""
    used = {"", *(node.domain for graph in graphs_of(model) for node in graph)}
    used |= {function.domain for function in model.functions.values()}
    dead = [domain for domain in model.graph.opset_imports if domain not in used]
    for domain in dead:
        del model.graph.opset_imports[domain]
    return bool(dead)


REMOVE_DEAD_NODES = FunctionPass("remove-dead-nodes", remove_dead_nodes)
