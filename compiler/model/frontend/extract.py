"""A model cut off at chosen values: the part before them or behind them, ready to run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from compiler.errors import UnsupportedModel, UsageError


def extract_prefix(model: ir.Model, value_names: Sequence[str]) -> ir.Model:
    """A copy that ends in the given values, without the nodes and weights they do not need; weights are shared.

    Args:
        model: The whole model; it is left as it is.
        value_names: Values of the outer graph, in the order the outputs shall have.

    Returns:
        The cut model; its inputs are those of the whole, used or not, so the same samples feed both.

    Raises:
        UsageError: The graph has no value of that name, or none is asked for.
        UnsupportedModel: The type of a value is not known, so it cannot be an output.
    """
    cut = model.clone()
    outputs = _find(cut.graph, value_names)
    cut.graph.outputs.clear()
    cut.graph.outputs.extend(outputs)
    _drop_unneeded(cut.graph)
    return cut


def extract_suffix(model: ir.Model, value_names: Sequence[str]) -> ir.Model:
    """A copy that begins at the given values, without the nodes and weights that its outputs no longer need.

    Args:
        model: The whole model; it is left as it is.
        value_names: Values of the outer graph that become inputs.

    Returns:
        The cut model; its inputs are the given values and those of the whole, as far as they are still read.

    Raises:
        UsageError: The graph has no value of that name, or none is asked for.
        UnsupportedModel: The type of a value is not known, so it cannot be an input.
    """
    cut = model.clone()
    graph = cut.graph
    for old in _find(graph, value_names):
        if old.producer() is not None:
            new, name = ir.Value(name=old.name, type=old.type, shape=old.shape), old.name
            old.name = f"{name}.before_cut"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.inputs.append(new)
    _drop_unneeded(graph)
    read = {value for node in graph for value in read_by(node)} | set(graph.outputs)
    inputs = [value for value in graph.inputs if value in read]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    return cut


def _drop_unneeded(graph: ir.Graph) -> None:
    """Takes out the nodes and weights that no output comes from."""
    outputs = set(graph.outputs)
    needed = needed_nodes(outputs)
    dropped = [node for node in reversed(list(graph)) if node not in needed]
    for node in dropped:
        _let_go(node)
    graph.remove(dropped, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and value not in outputs]:
        del graph.initializers[name]


def _find(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    values = {str(value.name): value for value in graph.inputs} | dict(graph.initializers)
    values |= {str(value.name): value for node in graph for value in node.outputs if value.name}
    unknown = [name for name in names if name not in values]
    if unknown or not names:
        near = difflib.get_close_matches(unknown[0], values, n=3) if unknown else []
        raise UsageError(
            f"the model has no value named {', '.join(map(repr, unknown))}" if unknown else "no value is asked for",
            remedy=f"Nearest: {', '.join(near)}." if near else "",
        )
    untyped = [name for name in names if values[name].type is None]
    if untyped:
        raise UnsupportedModel(f"the type of value {', '.join(map(repr, untyped))} is not known")
    return [values[name] for name in dict.fromkeys(names)]


def needed_nodes(outputs: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes the values come from."""
    needed: set[ir.Node] = set()
    waiting = [value.producer() for value in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        waiting += [value.producer() for value in read_by(node)]
    return needed


def read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads, values its subgraphs take from outside included."""
    read = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            read += [value for inner in graph.all_nodes() for value in inner.inputs if value is not None]
            read += list(graph.outputs)
    return read


def _let_go(node: ir.Node) -> None:
    """Ends the uses that the node's subgraphs make of values outside."""
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            for inner in graph.all_nodes():
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
