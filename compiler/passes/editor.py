"""Edits of a graph: new nodes before a node, values that stand in for others, and what nobody reads any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir


class Editor:
    """Adds nodes before a node of a graph.

    Args:
        model: Changed in place.
        before: The node.
    """

    def __init__(self, model: ir.Model, before: ir.Node) -> None:
        self.model, self._before = model, before

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> list[ir.Value]:
        """The results of a new node, named after the node that it is put before.

        Args:
            op: Its operator.
            inputs: What it reads; None where an input is left out.
            attributes: Its attributes.
            domain: Of the operator.
            outputs: How many results it has.
            dtype: Element type of all of them.
        """
        graph = self.model.graph
        place = f"{op}:{self._before.name}:{len(graph)}"
        node = ir.node(op, inputs, attributes or {}, domain=domain, name=place, num_outputs=outputs)  # type: ignore[arg-type]
        for number, value in enumerate(node.outputs):
            value.name, value.dtype = f"{place}:{number}", dtype
        graph.opset_imports.setdefault(domain, 1)
        graph.insert_before(self._before, node)
        return list(node.outputs)


def stand_in(old: ir.Value, new: ir.Value) -> None:
    """Has a new value read wherever an old one is, under its name."""
    name, new.shape, new.type = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}_before", name


def producer_of(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node of an operator of ONNX that gives a value; None where another one does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None


def remove_unread(model: ir.Model) -> None:
    """Removes nodes and initializers that lead to no output of the graph."""
    graph = model.graph
    for node in list(reversed(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
