"""Normalizes harmless differences between ONNX files right after they are read; each change has a note."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from compiler.model.frontend.check import DEFAULT_DOMAINS
from compiler.model.frontend.tensors import byte_size, each_graph, subgraphs

IR_VERSION_FREE_INITIALIZERS = 4
"""The first IR version in which an initializer need not also be a graph input."""

MAX_DENSE_BYTES = 2**29
"""512 MiB: the most a sparse tensor may become, since a few bytes of file can claim any shape."""


def normalize(proto: onnx.ModelProto) -> list[str]:
    """Rewrites the message in place to the normal form of the same model.

    Initializers leave the inputs, sparse tensors become dense, training information goes, every node gets a name of
    its own, and placeholders of unknown dimensions go.

    Returns:
        What was done, for the report.
    """
    notes = [
        *_drop_initializer_inputs(proto),
        *_make_dense(proto.graph),
        *_drop_training(proto),
        *_name_graphs(proto),
        *_name_nodes(proto),
        *_forget_placeholders(proto.graph),
    ]
    _spell_default_domain(proto)
    return notes


def dense_array(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """The sparse tensor written out.

    Raises:
        ValueError: Values and indices do not fit each other or the shape.
    """
    size = byte_size(sparse.values.data_type, math.prod(sparse.dims))
    if any(dim < 0 for dim in sparse.dims) or size > MAX_DENSE_BYTES:
        raise ValueError(f"its shape {list(sparse.dims)} would be {size} bytes written out dense")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if values.ndim != 1 or indices.shape not in ((values.size,), (values.size, len(sparse.dims))):
        raise ValueError(f"values of shape {values.shape} and indices of shape {indices.shape} do not belong together")
    dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dense.shape)
    if flat.size and (flat.min() < 0 or flat.max() >= dense.size):
        raise ValueError("an index lies outside the shape")
    dense.reshape(-1)[flat] = values
    return dense


def _forget_placeholders(graph: onnx.GraphProto) -> Iterator[str]:
    """Some exporters write an unknown dimension as a negative size, or as a name without a letter such as `?`."""
    shapes = [
        value.type.tensor_type.shape
        for inner in each_graph(graph)
        for value in (*inner.input, *inner.output, *inner.value_info)
    ]
    unknown = [dim for shape in shapes for dim in shape.dim if _is_placeholder(dim)]
    for dim in unknown:
        dim.Clear()
    if unknown:
        yield f"{len(unknown)} dimensions were written as -1 or `?`; they are unnamed now"


def _is_placeholder(dim: onnx.TensorShapeProto.Dimension) -> bool:
    if dim.HasField("dim_value"):
        return dim.dim_value < 0
    return dim.HasField("dim_param") and not any(letter.isalnum() for letter in dim.dim_param)


def _drop_initializer_inputs(proto: onnx.ModelProto) -> Iterator[str]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    weights |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    inputs = [item for item in proto.graph.input if item.name not in weights]
    dropped = len(proto.graph.input) - len(inputs)
    if dropped:
        _replace(proto.graph.input, inputs)
        yield f"{dropped} initializers were listed as inputs too; they are constants now"
    if proto.ir_version < IR_VERSION_FREE_INITIALIZERS:
        yield f"IR version {proto.ir_version} became {IR_VERSION_FREE_INITIALIZERS}"
        proto.ir_version = IR_VERSION_FREE_INITIALIZERS


def _make_dense(graph: onnx.GraphProto) -> Iterator[str]:
    for inner in each_graph(graph):
        for sparse in inner.sparse_initializer:
            inner.initializer.append(numpy_helper.from_array(dense_array(sparse), sparse.values.name))
            yield f"sparse initializer '{sparse.values.name}' was written out dense"
        del inner.sparse_initializer[:]
        for node in inner.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    attribute.t.CopyFrom(numpy_helper.from_array(dense_array(attribute.sparse_tensor)))
                    attribute.ClearField("sparse_tensor")
                    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                    yield f"sparse value of Constant '{node.name}' was written out dense"


def _name_graphs(proto: onnx.ModelProto) -> Iterator[str]:
    for index, graph in enumerate(each_graph(proto.graph)):
        if not graph.name:
            graph.name = f"graph_{index}"
            yield f"a graph had no name; it is '{graph.name}' now"


def _drop_training(proto: onnx.ModelProto) -> Iterator[str]:
    if proto.training_info:
        del proto.training_info[:]
        yield "training information was left out"


def _name_nodes(proto: onnx.ModelProto) -> Iterator[str]:
    bodies = [[node for graph in each_graph(proto.graph) for node in graph.node]]
    bodies += [_with_inner(function.node) for function in proto.functions]
    unnamed, repeated = 0, 0
    for nodes in bodies:
        taken = {node.name for node in nodes}
        seen: set[str] = set()
        counts: Counter[str] = Counter()
        for node in nodes:
            if node.name and node.name not in seen:
                seen.add(node.name)
                continue
            unnamed, repeated = unnamed + (not node.name), repeated + bool(node.name)
            node.name = _free_name(node.name or node.op_type, taken, counts)
    if unnamed:
        yield f"{unnamed} nodes had no name; they were numbered by operator"
    if repeated:
        yield f"{repeated} nodes had the name of another; a number was added"


def _free_name(stem: str, taken: set[str], counts: Counter[str]) -> str:
    while True:
        name = f"{stem}_{counts[stem]}"
        counts[stem] += 1
        if name not in taken:
            taken.add(name)
            return name


def _with_inner(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    nested: list[onnx.NodeProto] = []
    for node in nodes:
        nested.append(node)
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                nested += _with_inner(graph.node)
    return nested


def _spell_default_domain(proto: onnx.ModelProto) -> None:
    imports = [proto.opset_import, *(function.opset_import for function in proto.functions)]
    for item in (item for group in imports for item in group):
        item.domain = "" if item.domain in DEFAULT_DOMAINS else item.domain
    for group in imports:
        distinct = {item.domain: item.version for item in group}
        del group[:]
        group.extend(onnx.helper.make_opsetid(domain, version) for domain, version in distinct.items())
    for node in [*_with_inner(proto.graph.node), *(n for f in proto.functions for n in _with_inner(f.node))]:
        node.domain = "" if node.domain in DEFAULT_DOMAINS else node.domain


def _replace(field: object, items: list[onnx.ValueInfoProto]) -> None:
    """Puts copies of the items in place of a repeated field's own."""
    copies = [onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in items]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
