"""Names must be text: protobuf hands out bytes for what is not UTF-8, and nothing later could print or compare it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from compiler.errors import InvalidModel, ModelError
from compiler.model.frontend.tensors import subgraphs


def text_problems(proto: onnx.ModelProto) -> Iterator[ModelError]:
    """One problem if any name in the model is not UTF-8."""
    broken = [text for text in _model_texts(proto) if not isinstance(text, str) or "\0" in text]
    if broken:
        sample = ", ".join(repr(text)[:40] for text in broken[:3])
        yield InvalidModel(f"{len(broken)} names are not text: {sample}", remedy="The file is damaged; copy it again.")


def _model_texts(proto: onnx.ModelProto) -> Iterator[object]:
    yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    yield from (item.domain for item in proto.opset_import)
    yield from (text for entry in proto.metadata_props for text in (entry.key, entry.value))
    yield from _graph_texts(proto.graph)
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
        yield from (function.doc_string, function.overload, *(item.domain for item in function.opset_import))
        yield from (text for node in function.node for text in _node_texts(node))
        yield from (text for item in function.value_info for text in _value_texts(item))


def _graph_texts(graph: onnx.GraphProto) -> Iterator[object]:
    yield from (graph.name, graph.doc_string)
    for item in (*graph.input, *graph.output, *graph.value_info):
        yield from _value_texts(item)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        yield from _tensor_texts(tensor)
    for annotation in graph.quantization_annotation:
        yield from (annotation.tensor_name, *(e.value for e in annotation.quant_parameter_tensor_names))
    for node in graph.node:
        yield from _node_texts(node)


def _node_texts(node: onnx.NodeProto) -> Iterator[object]:
    yield from (node.name, node.op_type, node.domain, node.overload, node.doc_string, *node.input, *node.output)
    yield from (text for entry in node.metadata_props for text in (entry.key, entry.value))
    for attribute in node.attribute:
        yield from (attribute.name, attribute.ref_attr_name, attribute.doc_string)
        yield from (text for tensor in (attribute.t, *attribute.tensors) for text in _tensor_texts(tensor))
        for graph in subgraphs(attribute):
            yield from _graph_texts(graph)


def _tensor_texts(tensor: onnx.TensorProto) -> Iterator[object]:
    yield from (tensor.name, tensor.doc_string)
    yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _value_texts(item: onnx.ValueInfoProto) -> Iterator[object]:
    yield from (item.name, item.doc_string)
    yield from (dim.dim_param for dim in item.type.tensor_type.shape.dim)
