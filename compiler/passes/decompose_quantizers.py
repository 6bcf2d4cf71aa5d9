"""decompose-quantizers: QuantizeLinear and DequantizeLinear in operators on floats, for a target that refuses them.

A target without zero points, or without a type, computes the same numbers in float32:

    Q(x, s, z) = Cast(clip(round(x / s) + z))          D(q, s, z) = (Cast(q) - z)·s

Integers of 8 bits are exact in float32. Where all that reads a quantized value, moved or not, casts it back, both Casts
are left out and the value is never an integer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.model.graph import PassResult
from compiler.passes.decompose_quantized import Builder, Chooses, keep_float, take_over
from compiler.passes.matching import Refused
from compiler.passes.values import Names, constant_of, display_name, graphs_of

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})


def decompose_quantizers(model: ir.Model, chooses: Chooses) -> PassResult:
    """Writes out the chosen quantizers of 8 bits whose scale and zero point are constants."""
    names, notes, modified = Names(model), list[str](), False
    for graph in list(graphs_of(model)):
        integers = list[ir.Value]()
        for node in list(graph):
            if node.domain != "" or node.op_type not in _QUANTIZERS or not chooses(node):
                continue
            try:
                new = _written_out(node, names, opset=model.graph.opset_imports.get("", 1))
            except Refused as refusal:
                notes.append(f"{display_name(node)}: {node.op_type} stays: {refusal.reason}")
                continue
            integers += [new] if node.op_type == "QuantizeLinear" else []
            take_over(node.outputs[0], new)
            graph.remove(node, safe=True)
            modified = True
        for value in integers:
            keep_float(graph, value)
    return PassResult(modified, tuple(notes))


def _written_out(node: ir.Node, names: Names, *, opset: int) -> ir.Value:
    build = Builder(node, names, opset=opset)
    scale, zero = constant_of(node.inputs[1]), constant_of(node.inputs[2] if len(node.inputs) > 2 else None)
    integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if integers is None or integers.dtype not in _BYTES:
        raise Refused("its integers are not of 8 bits")
    if scale is None or (zero is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        raise Refused("its scale or its zero point is computed")
    if node.attributes.get_int("block_size", 0):
        raise Refused("its scales are of blocks")
    shape = _broadcast(node, scale.size)
    offset = np.zeros((), np.float32) if zero is None else zero.astype(np.float32).reshape(shape)
    factor = build.constant(scale.reshape(shape))
    if node.op_type == "DequantizeLinear":
        return _dequantized(build, node, factor, offset, scale.dtype)
    info = np.iinfo(integers.dtype.numpy())
    quotient = build.op("Round", [build.op("Div", [node.inputs[0], factor])])
    moved = build.op("Add", [quotient, build.constant(offset.astype(scale.dtype))]) if offset.any() else quotient
    low, high = (build.constant(np.array(bound, scale.dtype)) for bound in (info.min, info.max))
    return build.op("Cast", [build.op("Clip", [moved, low, high])], to=integers.dtype)


def _dequantized(
    build: Builder, node: ir.Node, factor: ir.Value, offset: np.ndarray, dtype: np.dtype[np.generic]
) -> ir.Value:
    array = constant_of(node.inputs[0])
    if array is not None:
        scale = np.asarray(constant_of(factor))
        return build.op("Identity", [build.constant(((array.astype(np.float32) - offset) * scale).astype(dtype))])
    value = build.op("Cast", [node.inputs[0]], to=ir.DataType.FLOAT)
    shifted = build.op("Sub", [value, build.constant(offset)]) if offset.any() else value
    if dtype != np.float32:
        shifted = build.op("Cast", [shifted], to=ir.DataType.from_numpy(dtype))
    return build.op("Mul", [shifted, factor])


def _broadcast(node: ir.Node, count: int) -> Sequence[int]:
    """The shape in which scales of one axis are broadcast against the data."""
    if count == 1:
        return ()
    data = node.inputs[0]
    if data is None or data.shape is None:
        raise Refused("the rank of its input is not known")
    shape = [1] * len(data.shape)
    shape[node.attributes.get_int("axis", 1)] = count
    return shape
