"""use-float32: for a target without float64, or without float16, what is computed in it is computed in float32.

float64   Exporters leave some operators at the end of a model: a NumPy scale, a mean of float64. What they read has
          float32's digits already, so float32 loses no more than its own rounding. Nothing is changed where float64
          says more: where the model is given float64, where integers of 32 or 64 bits are cast to it, or where a
          constant leaves float32's range.
float16   Every number of it is a float32.

Inputs and outputs of the model keep their types, by Casts before the first operator and behind the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.model.graph import PassResult
from compiler.passes.decompose_operators import Refuses
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.remove_identities import remove_identities
from compiler.passes.values import Names, display_name, nodes_at, record_origin

_DOUBLE, _HALF, _FLOAT = ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.FLOAT
_WORDS = {_DOUBLE: "float64", _HALF: "float16"}
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_EXACT = frozenset(
    {
        *(ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16),
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    }
)
"""Types whose every number is a float32."""


@dataclass(frozen=True)
class UseFloat32:
    """The pass.

    Args:
        refuses: What the target says of a node.
    """

    refuses: Refuses
    name: str = "use-float32"

    def __call__(self, model: ir.Model) -> PassResult:
        """Works on the main graph, for each type as a whole or not at all; a note says what was done, or why not."""
        results = [self._replace(model, dtype) for dtype in _WORDS]
        return PassResult(
            any(result.modified for result in results), tuple(n for result in results for n in result.notes)
        )

    def _replace(self, model: ir.Model, dtype: ir.DataType) -> PassResult:
        nodes = [node for node in model.graph if any(value.dtype == dtype for value in _values(node))]
        if not any(self.refuses(node) for node in nodes):
            return PassResult(False)
        if reason := next(_reasons(model, nodes, dtype), ""):
            return PassResult(False, (f"operators on {_WORDS[dtype]} stay: {reason}",))
        names = Names(model)
        inputs, outputs = (
            [v for v in values if v.dtype == dtype] for values in (model.graph.inputs, model.graph.outputs)
        )
        for value in dict.fromkeys(value for node in nodes for value in node.inputs if value is not None):
            if value.dtype == dtype and value.const_value is not None:
                value.const_value, value.type = _as_float(value.const_value), ir.TensorType(_FLOAT)
        for node in nodes:
            _replace_types(node, dtype)
        for value in inputs:
            _cast_input(model.graph, value, names)
        for value in outputs:
            _cast_output(model.graph, value, dtype, names)
        infer_shapes(model)
        remove_identities(model)  # Casts from float32 to float32
        return PassResult(True, (f"{len(nodes)} operators on {_WORDS[dtype]} are computed in float32",))


def _values(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *node.outputs) if value is not None]


def _reasons(model: ir.Model, nodes: list[ir.Node], dtype: ir.DataType) -> Iterator[str]:
    """Why float32 would say less, or why a node cannot be changed."""
    for graph in model.graph.subgraphs():
        if any(value.dtype == dtype for node in graph for value in _values(node)):
            yield "a subgraph has some, too"
    yield from (f"{display_name(n)} is an operator of {n.domain}" for n in nodes if n.domain not in ("", "ai.onnx"))
    if dtype != _DOUBLE:
        return
    yield from (f"input '{value.name}' is float64" for value in model.graph.inputs if value.dtype == _DOUBLE)
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        is_widening = node.op_type == "Cast" and node.outputs[0].dtype == _DOUBLE and source is not None
        if is_widening and source is not None and source.dtype not in _EXACT:
            yield f"{display_name(node)} casts {source.dtype.name if source.dtype else 'an unknown type'}"
    for tensor in _constants(nodes):
        array = tensor.numpy()
        if np.any(np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)):
            yield f"constant '{tensor.name}' is beyond float32"


def _constants(nodes: list[ir.Node]) -> Iterator[ir.TensorProtocol]:
    for node in nodes:
        held = [value.const_value for value in node.inputs if value is not None]
        held += [attribute.value for attribute in node.attributes.values() if attribute.type == ir.AttributeType.TENSOR]
        yield from (tensor for tensor in held if tensor is not None and tensor.dtype == _DOUBLE)


def _as_float(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _replace_types(node: ir.Node, dtype: ir.DataType) -> None:
    for name in _TYPE_ATTRIBUTES:
        if node.attributes.get_int(name, 0) == dtype:
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == dtype:
            node.attributes[name] = ir.AttrTensor(name, _as_float(attribute.value))
    for value in node.outputs:
        if value.dtype == dtype:
            value.type = ir.TensorType(_FLOAT)


def _cast_input(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    """Lets every reader of an input read it in float32."""
    sources = nodes_at(value)
    if not sources:
        return
    cast = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=names.fresh(f"{value.name}_Cast"))
    result = cast.outputs[0]
    result.name, result.type, result.shape = names.fresh(f"{value.name}_float32"), ir.TensorType(_FLOAT), value.shape
    record_origin(cast, sources)
    graph.insert_before(graph[0], [cast])
    value.replace_all_uses_with(result)
    cast.replace_input_with(0, value)


def _cast_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, names: Names) -> None:
    """Gives an output its type back; others go on reading the value in float32."""
    if value.is_graph_input():
        return  # handed through, which keeps its type
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=names.fresh(f"{value.name}_Cast"))
    result = cast.outputs[0]
    result.type, result.shape = ir.TensorType(dtype), value.shape
    result.name, value.name = value.name, names.fresh(f"{value.name}_float32")
    graph.append(cast)
    if (source := value.producer()) is not None:
        record_origin(cast, [source])
    for place, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[place] = result
