"""A model that computes in float16 or bfloat16, raised to float32: what is observed, fitted and given Q/DQ.

Weights and values of the graph and its subgraphs become float32. Graph inputs and outputs keep names and types, with a
Cast behind or before them. `apply` brings what is not quantized to the precision of the scheme again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.values import Names, record_origin

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOAT = ir.TensorType(ir.DataType.FLOAT)
_TYPE_ATTRIBUTES = ("to", "dtype")
"""Attributes that name the type of a result: of Cast, and of operators like EyeLike and RandomNormal."""


def widen(model: ir.Model) -> ir.Model:
    """A copy in float32 of a model with products in half precision; any other model itself.

    Args:
        model: Types inferred; left as it is.
    """
    halves = (node for node in model.graph.all_nodes() if node.op_type in _PRODUCTS and _is_half(node.inputs[0]))
    if model.functions or next(halves, None) is None:
        return model
    copy = model.clone()
    for graph in {id(node.graph): node.graph for node in copy.graph.all_nodes()}.values():
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            _widen_constant(value)
    for node in copy.graph.all_nodes():
        _widen_node(node)
    names = Names(copy)
    for value in copy.graph.inputs:
        if _is_half(value) and list(value.uses()):
            _cast_input(copy, value, names)
    _drop_casts(copy)
    for index, value in enumerate(model.graph.outputs):
        if _is_half(value) and not value.is_graph_input():
            _cast_output(copy, index, value.dtype, names)
    return copy


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _HALVES


def _widen_constant(value: ir.Value) -> None:
    if _is_half(value) and value.const_value is not None:
        value.const_value = _widened(value.const_value)
        value.type = _FLOAT


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(np.asarray(tensor.numpy(), np.float32), name=tensor.name)


def _widen_node(node: ir.Node) -> None:
    for value in node.outputs:
        if _is_half(value):
            value.type = _FLOAT  # not its dtype: a copy shares the type with the model that it was made of
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
        elif attribute.type == ir.AttributeType.GRAPH:
            for value in attribute.as_graph().inputs:
                if _is_half(value):
                    value.type = _FLOAT


def _cast_input(model: ir.Model, value: ir.Value, names: Names) -> None:
    readers = list(value.uses())
    cast = _cast(value, ir.DataType.FLOAT, names.fresh(f"{value.name}_float32"))
    for node, index in readers:
        node.replace_input_with(index, cast.outputs[0])
    record_origin(cast, [readers[0].node])
    model.graph.insert_before(model.graph[0], cast)


def _cast_output(model: ir.Model, index: int, dtype: ir.DataType | None, names: Names) -> None:
    """The output keeps its name; the value inside takes a new one."""
    value = model.graph.outputs[index]
    name = str(value.name)
    earlier = [cast for cast in model.graph.outputs[:index] if cast.name == name]
    if earlier:  # one value may be an output twice
        model.graph.outputs[index] = earlier[0]
        return
    value.name = names.fresh(f"{name}_float32")
    cast = _cast(value, dtype or ir.DataType.FLOAT16, name)
    source = value.producer()
    record_origin(cast, [source] if source is not None else [])
    model.graph.append(cast)
    model.graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, name=f"Cast:{name}")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, ir.TensorType(dtype)
    return node


def _drop_casts(model: ir.Model) -> None:
    """Removes Casts of the model's own from float32 to float32: a Cast between two operators keeps them from fusing."""
    for node in list(model.graph):
        is_plain = node.op_type == "Cast" and node.domain == "" and not node.outputs[0].is_graph_output()
        value = node.inputs[0] if is_plain else None
        if value is not None and value.dtype == node.outputs[0].dtype == ir.DataType.FLOAT:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
