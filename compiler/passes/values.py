"""Helpers of passes for values: constants, uses, fresh names, and the source nodes of a replacement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ORIGIN_KEY = "fleetc.origin"
"""Node metadata: names of the source nodes a node stands for, one per line."""

_SCALAR_ATTRIBUTES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, then every subgraph of If, Loop and Scan; functions are not among them."""
    yield model.graph
    yield from model.graph.subgraphs()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant, or None: an initializer that is no graph input, or the output of a Constant node."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "" or len(node.attributes) != 1:
        return None
    return _attribute_tensor(next(iter(node.attributes.values())))


def constant_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array of a constant, or None. Never write into it: it may be shared, or mapped from a file."""
    tensor = constant_tensor(value)
    return None if tensor is None else array_of(tensor)


def array_of(tensor: ir.TensorProtocol) -> NDArray[np.generic]:
    """A tensor's array; it is not kept where it is no view of a mapped file."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth < 8:
        tensor = copy(tensor)  # it would keep what it unpacks, twice the bytes of the file
    return tensor.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """The number in a constant of one element and any rank, or None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()).astype(np.float64))


def is_only_used_by(value: ir.Value, node: ir.Node) -> bool:
    """Whether `node` is the only reader of the value and the value is no graph output."""
    return not value.is_graph_output() and all(user is node for user, _ in value.uses())


def origins_of(node: ir.Node) -> tuple[str, ...]:
    """Names of the source nodes a node stands for; its own name where no pass has touched it."""
    recorded = node.metadata_props.get(ORIGIN_KEY)
    return tuple(recorded.split("\n")) if recorded else (display_name(node),)


def record_origin(node: ir.Node, sources: Iterable[ir.Node]) -> None:
    """Notes that `node` stands for `sources` (and for what it stood for before, if anything was noted)."""
    names = list(node.metadata_props.get(ORIGIN_KEY, "").split("\n")) if ORIGIN_KEY in node.metadata_props else []
    names.extend(name for source in sources for name in origins_of(source))
    node.metadata_props[ORIGIN_KEY] = "\n".join(dict.fromkeys(names))


def nodes_at(value: ir.Value) -> list[ir.Node]:
    """The node that computes a value, or, of a graph input, its readers: the origins of a node inserted behind it."""
    producer = value.producer()
    return [producer] if producer is not None else list(dict.fromkeys(reader for reader, _ in value.uses()))


def display_name(node: ir.Node) -> str:
    """The node's name, or operator and first output where it has none."""
    output = node.outputs[0].name if node.outputs else ""
    return (node.name or f"{node.op_type}:{output}").replace("\n", " ")


def replace_input(node: ir.Node, index: int, new: ir.Value) -> None:
    """Lets the node read `new`, and removes the producer of the old value if nothing else reads it."""
    old = node.inputs[index]
    node.replace_input_with(index, new)
    producer = None if old is None else old.producer()
    if producer is None or producer.graph is None:
        return
    if not any(value.uses() or value.is_graph_output() for value in producer.outputs):
        producer.graph.remove(producer, safe=True)


class Names:
    """Names in use in a model (values and nodes, subgraphs included), to make unique new ones.

    Args:
        model: Read once; names given out later are added.
    """

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for graph in graphs_of(model):
            self._taken.update(value.name for value in graph.inputs if value.name)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.update(value.name for value in node.outputs if value.name)
                self._taken.update([node.name] if node.name else [])

    def fresh(self, wish: str) -> str:
        """The wish itself, or with the first free suffix `_1`, `_2`, …"""
        name, count = wish, 0
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


def _attribute_tensor(attribute: ir.Attr) -> ir.TensorProtocol | None:
    if attribute.is_ref():
        return None
    if attribute.name == "value":
        return attribute.as_tensor()
    dtype = _SCALAR_ATTRIBUTES.get(attribute.name)
    return None if dtype is None else ir.tensor(np.asarray(attribute.value, dtype=dtype))
