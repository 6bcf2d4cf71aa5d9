"""inline-functions: calls of the model's own functions become the nodes of their bodies, functions in functions too.

PyTorch's exporter writes a function per module. A function may import another opset than the model; it is inlined where
every operator in it means the same in the model's. A function that takes a graph as an attribute stays a function.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.function_bodies import means_the_same
from compiler.passes.values import ORIGIN_KEY, display_name, graphs_of


def inline_functions(model: ir.Model) -> PassResult:
    """Inlines in the main graph and in subgraphs; notes name the functions that stay, with the reason."""
    if not model.functions:
        return PassResult(False)
    reasons = {identifier: _reason(function, model) for identifier, function in model.functions.items()}
    notes = [
        f"function {function.domain}::{function.name} is not inlined: {reasons[identifier]}"
        for identifier, function in model.functions.items()
        if reasons[identifier]
    ]
    _take_opsets(model, {identifier for identifier, reason in reasons.items() if not reason})
    _record_calls(model)
    result = common.InlinePass(criteria=lambda function: not reasons[function.identifier()])(model)
    if result.modified:
        common.NameFixPass()(model)  # values of a body may have names that a subgraph uses
        _name_nodes(model)
    return PassResult(result.modified, tuple(notes))


def _reason(function: ir.Function, model: ir.Model) -> str:
    """Why a function cannot be inlined; empty where it can."""
    for domain, version in function.opset_imports.items():
        current = model.graph.opset_imports.get(domain, version)
        others = {node.op_type for node in function.all_nodes() if node.domain == domain and current != version}
        changed = sorted(op for op in others if domain or not means_the_same(op, version, current))
        if changed:
            return f"it is written in opset {version}, the model in {current}, and {', '.join(changed)} changed between"
    calls = [node for node in _all_nodes(model) if node.op_identifier() == function.identifier()]
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if any(attribute.type in graphs for call in calls for attribute in call.attributes.values()):
        return "it takes a graph as an attribute"
    return ""


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _take_opsets(model: ir.Model, identifiers: set[ir.OperatorIdentifier]) -> None:
    """Lets functions import what the model does: the inliner wants equal versions, and the meanings are equal."""
    for identifier in identifiers:
        imports = model.functions[identifier].opset_imports
        for domain in imports:
            imports[domain] = model.graph.opset_imports.get(domain, imports[domain])


def _record_calls(model: ir.Model) -> None:
    """Inlined nodes get the metadata of the call, so the call's name goes along as their origin."""
    for graph in graphs_of(model):
        for node in graph:
            if node.op_identifier() in model.functions:
                node.metadata_props.setdefault(ORIGIN_KEY, display_name(node))


def _name_nodes(model: ir.Model) -> None:
    """Gives every node a name of its own, across subgraphs: what became of a node is found by its name."""
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        wish, count = node.name or node.op_type, 0
        while (name := f"{wish}_{count}" if count else wish) in taken:
            count += 1
        node.name = name
        taken.add(name)


INLINE_FUNCTIONS = FunctionPass("inline-functions", inline_functions)
