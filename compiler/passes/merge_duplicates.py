"""merge-duplicates: what is computed or stored twice is computed and stored once.

1. initializers of equal type, shape and bytes
2. nodes of equal operator, attributes and inputs, the first of them stays
Operators that draw random numbers, hold a subgraph or come from an unknown domain are not merged.
Two equal nodes that both compute a graph output stay two, because each output needs its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.probe import RANDOM_OPERATORS
from compiler.passes.values import display_name, graphs_of, record_origin

# equal beginnings are compared in full afterwards; hashing every weight would take seconds
_SAMPLE_BYTES = 4096
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def merge_duplicates(model: ir.Model) -> PassResult:
    """Merges within each graph; a subgraph is not compared with the graph around it."""
    notes: list[str] = []
    modified = [_merge_initializers(graph) | _merge_nodes(graph, notes) for graph in graphs_of(model)]
    return PassResult(any(modified), tuple(notes))


def _merge_initializers(graph: ir.Graph) -> bool:
    seen: dict[Hashable, list[ir.Value]] = {}
    modified = False
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or value.is_graph_input() or value.is_graph_output():
            continue
        alike = seen.setdefault(_sample(value.const_value), [])
        first = next((other for other in alike if _equal(other.const_value, value.const_value)), None)
        if first is None:
            alike.append(value)
            continue
        value.replace_all_uses_with(first)
        del graph.initializers[name]
        modified = True
    return modified


def _sample(tensor: ir.TensorProtocol) -> Hashable:
    """Type, shape and a digest of the first bytes: equal tensors have equal samples, and no weight is read twice."""
    shape = tuple(str(size) for size in tensor.shape)
    if tensor.dtype == ir.DataType.STRING:
        return tensor.dtype, shape
    head = np.ascontiguousarray(tensor.numpy().reshape(-1)[:_SAMPLE_BYTES])
    return tensor.dtype, shape, hashlib.sha256(head.tobytes()).digest()


def _equal(first: ir.TensorProtocol | None, second: ir.TensorProtocol | None) -> bool:
    if first is None or second is None:
        return False
    left, right = first.numpy(), second.numpy()
    if left.dtype.kind == "O":
        return bool(np.array_equal(left, right))
    left, right = np.ascontiguousarray(left).reshape(-1), np.ascontiguousarray(right).reshape(-1)
    return bool(np.array_equal(left.view(np.uint8), right.view(np.uint8)))  # bits: −0 is not 0, NaN is itself


def _merge_nodes(graph: ir.Graph, notes: list[str]) -> bool:
    seen: dict[Hashable, ir.Node] = {}
    modified = False
    for node in graph:
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if _merge(graph, node, first):
            modified = True
        else:
            notes.append(f"{display_name(node)}: equals {display_name(first)}, but both compute graph outputs")
    return modified


def _key(node: ir.Node) -> Hashable | None:
    if node.domain not in ("", "ai.onnx.ml") or node.op_type in RANDOM_OPERATORS or not node.inputs:
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2:  # with training_mode it draws random numbers
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type in _GRAPHS or attribute.is_ref():
            return None
        attributes.append((name, attribute.type, _frozen(attribute)))
    present = tuple(bool(value.name) for value in node.outputs)
    return node.op_identifier(), tuple(map(id, node.inputs)), tuple(attributes), present


def _frozen(attribute: ir.Attr) -> Hashable:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return _sample(tensor), hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).digest()
    return repr(attribute.value)


def _merge(graph: ir.Graph, node: ir.Node, first: ir.Node) -> bool:
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    if any(old.is_graph_output() and new.is_graph_output() for old, new in pairs):
        return False
    for old, new in pairs:
        if old.is_graph_output():
            old.name, new.name = None, old.name
            new.type, new.shape = old.type or new.type, old.shape if old.shape is not None else new.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    record_origin(first, [first, node])
    graph.remove(node, safe=True)
    return True


MERGE_DUPLICATES = FunctionPass("merge-duplicates", merge_duplicates)
