"""Weights of int8 whose products are computed in float: DQ(w) → Conv | Gemm | MatMul, with nothing quantized beside.

DequantizeLinear of a constant becomes the constant of floats that TVM's importer reads. What it was made of is kept
beside the graph, under the digest of its rows: one row of all weights for each filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compiler.target import Array, add_constant
from targets.arm_tvm.graph.quantized.tensors import Floats, constant, is_op, weights
from targets.arm_tvm.graph.reading import array_digest

PRODUCTS = ("Conv", "Gemm", "MatMul")


def take_stored(model: ir.Model) -> Mapping[str, Floats]:
    """Writes dequantized weights as floats, in place; gives the digest of their rows → the factor of each filter."""
    factors: dict[str, Floats] = {}
    for node in tuple(model.graph):
        if is_op(node, *PRODUCTS):
            factors |= dict(_stored(node))
    for node in tuple(model.graph):
        floats = _dequantized(node)
        if floats is not None:
            _replace(node, floats, model.graph)
    RemoveUnusedNodesPass()(model)
    return factors


def rows_digest(rows: Array) -> str:
    """Names weights, filters first, however the window's axes are written."""
    return array_digest(np.ascontiguousarray(rows.reshape(len(rows), -1), np.float32))


def _stored(node: ir.Node) -> Iterator[tuple[str, Floats]]:
    """Digest and factors of a product's weights, where they are int8 with one factor for each filter."""
    is_first = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    value = node.inputs[1]
    stored, producer = weights(value, 0 if is_first else 1), value.producer() if value is not None else None
    floats = _dequantized(producer) if producer is not None else None
    if stored is not None and floats is not None and (is_first or floats.ndim == 2):
        yield rows_digest(floats if is_first else floats.T), stored.scale


def _dequantized(node: ir.Node) -> Array | None:
    """The floats that DequantizeLinear makes of a constant; None for other nodes."""
    if not is_op(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) != 0:
        return None
    values, scale = constant(node.inputs[0]), constant(node.inputs[1])
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = constant(node.inputs[2]) if given else np.zeros((), np.int32)
    if values is None or scale is None or zero is None or scale.dtype != np.float32 or values.dtype.kind not in "iu":
        return None
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[node.attributes.get_int("axis", 1)] = scale.size
    factors = scale.astype(np.float32).reshape(shape if scale.size > 1 else ())
    centred = values.astype(np.int32) - zero.astype(np.int32).reshape(shape if zero.size > 1 else ())
    return np.asarray(centred.astype(np.float32) * factors)


def _replace(node: ir.Node, floats: Array, graph: ir.Graph) -> None:
    (made,) = node.outputs
    if made.is_graph_output():
        return
    value = add_constant(graph, f"{made.name}.floats", floats)
    for reader, index in tuple(made.uses()):
        reader.replace_input_with(index, value)
