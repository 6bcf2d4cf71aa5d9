"""decompose-quantized: an operator on integers becomes a float one between DequantizeLinear and QuantizeLinear.

With D(q, s, z) = (q − z)·s, DequantizeLinear, and Q(x, s, z) = saturate(round(x / s) + z), QuantizeLinear:

1. QLinearConv, QLinearMatMul; of com.microsoft QLinearAdd, QLinearMul, QLinearSigmoid, QLinearLeakyRelu, QLinearConcat,
   QLinearGlobalAveragePool, QGemm:   op(q…) = Q(op(D(q)…))
   A bias b in int32 of Conv and Gemm is b·s_x·s_w.
2. ConvInteger, MatMulInteger:   op(q, p, z, y) = Cast(op(q − z, p − y))   in float, which is exact up to 2²⁴; beyond it
   the sum is rounded to 24 bits. The Cast to int32 is left out where all that read it are Casts to float.
3. DynamicQuantizeLinear:   s = (max(x, 0) − min(x, 0)) / 255, or 1;   z = round(clip(−min(x, 0) / s));   q = Q(x, s, z)
   in operators on floats, since the scale is computed; x̂ is uint8 only where others than 2. read it.
4. DynamicQuantizeLSTM of com.microsoft:   LSTM of the weights (q − z)·s.   What it quantizes on the way, its input and
   its state at every step, stays float: the result is nearer to the model before it was quantized.

Results of 1. to 3. are those of the integer operator but for roundings of a tie, which differ by one step. Operators
whose scales are not of one number or one per channel are left alone, and named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.errors import InternalError
from compiler.model.graph import FunctionPass, PassResult, add_constant
from compiler.model.numerics import Array
from compiler.passes.matching import Refused
from compiler.passes.shift_quantized import connected, hands_on, is_moved
from compiler.passes.values import Names, constant_of, display_name, graphs_of, record_origin

_OWN, _MICROSOFT = "", "com.microsoft"
_FLOAT = ir.DataType.FLOAT
_CHANNELS_OPSET = 13
"""Since then DequantizeLinear takes one scale for each channel."""

Operand = tuple[ir.Value | None, ir.Value | None, ir.Value | None]
"""Integers, scale and zero point."""


class Builder:
    """New nodes in front of one node, which they stand for.

    Args:
        node: The node that they replace.
        names: Of the model.
        opset: Of the model.
    """

    def __init__(self, node: ir.Node, names: Names, *, opset: int) -> None:
        self.node, self._names, self._opset = node, names, opset
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise Refused("it is in a function")
        self._graph, self._nodes, self._constants = graph, list[ir.Node](), list[str]()

    def undo(self) -> None:
        """Removes what was made so far."""
        self._graph.remove(self._nodes[::-1])
        for name in self._constants:
            self._graph.initializers.pop(name)

    def op(self, kind: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        made = ir.node(kind, list(inputs), attributes or None, name=self._names.fresh(f"{self.node.name}_{kind}"))
        made.outputs[0].name = self._names.fresh(f"{self.node.outputs[0].name}_{kind}")
        record_origin(made, [self.node])
        self._graph.insert_before(self.node, made)
        self._nodes.append(made)
        return made.outputs[0]

    def results(self, kind: str, inputs: Sequence[ir.Value | None], count: int, **attributes: Any) -> list[ir.Value]:
        """All outputs of a new node."""
        first = self.op(kind, inputs, **attributes)
        made = first.producer()
        if made is None:
            raise InternalError(f"the new {kind} of '{self.node.name}' has no node")
        made.resize_outputs(count)
        for output in made.outputs[1:]:
            output.name = self._names.fresh(f"{self.node.outputs[0].name}_{kind}")
        return list(made.outputs)

    def constant(self, array: Any) -> ir.Value:
        """A new initializer."""
        name = self._names.fresh(f"{self.node.outputs[0].name}_constant")
        self._constants.append(name)
        return add_constant(self._graph, name, np.asarray(array))

    def dequantize(self, operand: Operand, *, axis: int | None = None) -> ir.Value:
        """D of an operand; with one scale for each channel they are those of this axis."""
        integers, scale, zero = operand
        inputs = [integers, scale] if zero is None else [integers, scale, zero]
        attributes = _axis_of(scale, axis)
        if attributes and self._opset < _CHANNELS_OPSET:
            text = "has no DequantizeLinear for channels; export the model with opset 13 or newer"
            raise Refused(f"opset {self._opset} {text}")
        value = self.op("DequantizeLinear", inputs, **attributes)
        value.type, value.shape = ir.TensorType(_FLOAT), integers.shape if integers is not None else None
        return value

    def quantize(self, value: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
        """Q of a value."""
        return self.op("QuantizeLinear", [value, scale] if zero is None else [value, scale, zero])

    def floats(
        self, integers: ir.Value | None, zero: ir.Value | None, shape: tuple[int, ...] | None = None
    ) -> ir.Value:
        """q − z as floats; the zero points of several channels are brought into a shape that broadcasts."""
        array, offset = constant_of(integers), constant_of(zero)
        if offset is not None:
            offset = offset.astype(np.float32).reshape(shape if offset.size > 1 else ())
        if array is not None and (zero is None or offset is not None):
            return self.constant(array.astype(np.float32) - (np.float32(0) if offset is None else offset))
        value = self.op("Cast", [integers], to=_FLOAT)
        if zero is None:
            return value
        if offset is not None:
            return self.op("Sub", [value, self.constant(offset)])
        moved = self.op("Cast", [zero], to=_FLOAT)
        if _size(zero) != 1:
            moved = self.op("Reshape", [moved, self.constant(np.array(shape, np.int64))])
        return self.op("Sub", [value, moved])


def _axis_of(scale: ir.Value | None, axis: int | None) -> dict[str, int]:
    size = _size(scale)
    if size == 1:
        return {}
    rank = len(scale.shape) if scale is not None and scale.shape is not None else None
    if axis is None or rank != 1 or size is None:
        raise Refused("its scale is neither one number nor one for each channel")
    return {"axis": axis}


def _size(value: ir.Value | None) -> int | None:
    """Elements of a value; None where that is not known."""
    array = constant_of(value)
    if array is not None:
        return int(array.size)
    sizes = [size for size in value.shape if isinstance(size, int)] if value is not None and value.shape else []
    return (
        math.prod(sizes) if value is not None and value.shape is not None and len(sizes) == len(value.shape) else None
    )


def _rank(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        raise Refused("the rank of an input is not known")
    return len(value.shape)


def _operand(node: ir.Node, first: int) -> Operand:
    got = [node.inputs[index] if index < len(node.inputs) else None for index in range(first, first + 3)]
    return got[0], got[1], got[2]


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _attributes(node: ir.Node, *left_out: str) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items() if name not in left_out}


def _bias(build: Builder, bias: ir.Value | None, x_scale: ir.Value | None, w_scale: ir.Value | None) -> ir.Value | None:
    """b·s_x·s_w of a bias in int32: a constant in float, since targets refuse DequantizeLinear of int32."""
    if bias is None:
        return None
    left, right, integers = constant_of(x_scale), constant_of(w_scale), constant_of(bias)
    if left is None or right is None or integers is None:
        scale = build.op("Mul", [x_scale, w_scale])
        return build.op("Mul", [build.op("Cast", [bias], to=_FLOAT), scale])
    both = left.astype(np.float64).reshape(-1) * right.astype(np.float64).reshape(-1)
    return build.constant((integers.astype(np.float64) * both).astype(np.float32))


def _conv(build: Builder, node: ir.Node) -> ir.Value:
    x, w = _operand(node, 0), _operand(node, 3)
    inputs = [build.dequantize(x), build.dequantize(w, axis=0)]
    if (bias := _bias(build, _optional(node, 8), x[1], w[1])) is not None:
        inputs.append(bias)
    made = build.op("Conv", inputs, **_attributes(node))
    return build.quantize(made, node.inputs[6], node.inputs[7])


def _matmul(build: Builder, node: ir.Node) -> ir.Value:
    a, b = _operand(node, 0), _operand(node, 3)
    left = build.dequantize(a, axis=max(0, _rank(a[0]) - 2))
    made = build.op("MatMul", [left, build.dequantize(b, axis=_rank(b[0]) - 1)])
    return build.quantize(made, node.inputs[6], node.inputs[7])


def _gemm(build: Builder, node: ir.Node) -> ir.Value:
    a, b, attributes = _operand(node, 0), _operand(node, 3), _attributes(node)
    inputs = [build.dequantize(a), build.dequantize(b, axis=0 if attributes.get("transB", 0) else 1)]
    alpha = attributes.get("alpha", 1.0)
    if (bias := _bias(build, _optional(node, 6), a[1], b[1])) is not None:
        inputs.append(bias if alpha == 1.0 else build.op("Mul", [bias, build.constant(np.float32(alpha))]))
    made = build.op("Gemm", inputs, **attributes)
    scale = _optional(node, 7)
    return made if scale is None else build.quantize(made, scale, _optional(node, 8))


def _binary(kind: str) -> Callable[[Builder, ir.Node], ir.Value]:
    def rewrite(build: Builder, node: ir.Node) -> ir.Value:
        made = build.op(kind, [build.dequantize(_operand(node, 0)), build.dequantize(_operand(node, 3))])
        return build.quantize(made, node.inputs[6], _optional(node, 7))

    return rewrite


def _unary(kind: str) -> Callable[[Builder, ir.Node], ir.Value]:
    def rewrite(build: Builder, node: ir.Node) -> ir.Value:
        if node.attributes.get_int("channels_last", 0):
            raise Refused("its channels are last")
        made = build.op(kind, [build.dequantize(_operand(node, 0))], **_attributes(node, "channels_last"))
        return build.quantize(made, node.inputs[3], _optional(node, 4))

    return rewrite


def _concat(build: Builder, node: ir.Node) -> ir.Value:
    parts = [build.dequantize(_operand(node, first)) for first in range(2, len(node.inputs), 3)]
    return build.quantize(build.op("Concat", parts, **_attributes(node)), node.inputs[0], node.inputs[1])


def _conv_integer(build: Builder, node: ir.Node) -> ir.Value:
    x, w, x_zero, w_zero = (_optional(node, index) for index in range(4))
    places = (-1, *(1,) * (_rank(w) - 1))
    made = build.op("Conv", [build.floats(x, x_zero, ()), build.floats(w, w_zero, places)], **_attributes(node))
    return _as_int32(build, node, made)


def _matmul_integer(build: Builder, node: ir.Node) -> ir.Value:
    a, b, a_zero, b_zero = (_optional(node, index) for index in range(4))
    if any(_size(zero) != 1 and zero is not None and _rank(zero) != 1 for zero in (a_zero, b_zero)):
        raise Refused("its zero points are neither one number nor one for each row or column")
    made = build.op("MatMul", [build.floats(a, a_zero, (-1, 1)), build.floats(b, b_zero, (-1,))])
    return _as_int32(build, node, made)


def _as_int32(build: Builder, node: ir.Node, value: ir.Value) -> ir.Value:
    """The sums in int32, or as they are where all that read them are Casts to float."""
    output = node.outputs[0]
    casts = [reader for reader, _ in output.uses()]
    if not output.is_graph_output() and all(_is_cast_to_float(cast) for cast in casts):
        value.type, value.shape = ir.TensorType(_FLOAT), output.shape
        return value
    return build.op("Cast", [value], to=ir.DataType.INT32)


def _is_cast_to_float(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.domain == "" and node.attributes.get_int("to", 0) == _FLOAT


def _dynamic(build: Builder, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    x = node.inputs[0]
    zero, top, one = (build.constant(np.float32(number)) for number in (0, 255, 1))
    low, high = (build.op(pick, [build.op(f"Reduce{pick}", [x], keepdims=0), zero]) for pick in ("Min", "Max"))
    width = build.op("Div", [build.op("Sub", [high, low]), top])
    scale = build.op("Where", [build.op("Equal", [width, zero]), one, width])
    # clipped before it is rounded, as the specification has it
    point = build.op("Round", [build.op("Clip", [build.op("Div", [build.op("Neg", [low]), scale]), zero, top])])
    moved = build.op("Add", [build.op("Round", [build.op("Div", [x, scale])]), point])
    integers = build.op("Cast", [build.op("Clip", [moved, zero, top])], to=ir.DataType.UINT8)
    return integers, scale, build.op("Cast", [point], to=ir.DataType.UINT8)


def _dynamic_lstm(build: Builder, node: ir.Node) -> tuple[ir.Value, ...]:
    weights = [_lstm_weights(node, index, scale) for index, scale in ((1, 8), (2, 10))]
    inputs = [node.inputs[0], *map(build.constant, weights), *(_optional(node, index) for index in range(3, 8))]
    while inputs[-1] is None:
        inputs.pop()
    return tuple(build.results("LSTM", inputs, len(node.outputs), **_attributes(node)))


def _lstm_weights(node: ir.Node, index: int, scale_index: int) -> Array:
    """Those of input or state as floats, (directions, 4·units, inputs); the operator has the last two the other way."""
    integers, scale, zero = (constant_of(_optional(node, place)) for place in (index, scale_index, scale_index + 1))
    if integers is None or scale is None or zero is None:
        raise Refused("its weights, their scales or their zero points are computed")
    directions = integers.shape[0]
    factors, offsets = (array.astype(np.float32).reshape(directions, 1, -1) for array in (scale, zero))
    floats = (integers.astype(np.float32) - offsets) * factors
    return np.ascontiguousarray(floats.transpose(0, 2, 1))


_SEVERAL: Mapping[tuple[str, str], Callable[[Builder, ir.Node], tuple[ir.Value, ...]]] = {
    (_OWN, "DynamicQuantizeLinear"): _dynamic,
    (_MICROSOFT, "DynamicQuantizeLSTM"): _dynamic_lstm,
}
"""Operators of several results."""

_SINGLE: Mapping[tuple[str, str], Callable[[Builder, ir.Node], ir.Value]] = {
    (_OWN, "QLinearConv"): _conv,
    (_OWN, "QLinearMatMul"): _matmul,
    (_OWN, "ConvInteger"): _conv_integer,
    (_OWN, "MatMulInteger"): _matmul_integer,
    (_MICROSOFT, "QGemm"): _gemm,
    (_MICROSOFT, "QLinearAdd"): _binary("Add"),
    (_MICROSOFT, "QLinearMul"): _binary("Mul"),
    (_MICROSOFT, "QLinearConcat"): _concat,
    (_MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (_MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (_MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
}
"""Operators of one result."""


Chooses = Callable[[ir.Node], bool]
"""Whether a node is written out."""


def decompose_quantized(model: ir.Model, chooses: Chooses = lambda node: True) -> PassResult:
    """Rewrites such operators of the graph and its subgraphs: all, or those of a choice."""
    names, notes, modified = Names(model), list[str](), False
    opset = model.graph.opset_imports.get("", 1)
    for graph in list(graphs_of(model)):
        dynamic = list[ir.Value]()
        for node in list(graph):
            key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
            if (key not in _SINGLE and key not in _SEVERAL) or not chooses(node):
                continue
            try:
                made = _replace(graph, node, names, opset)
                dynamic += [made[0], made[2]] if key == (_OWN, "DynamicQuantizeLinear") else []
                modified = True
            except Refused as refusal:
                notes.append(f"{display_name(node)}: {node.op_type} stays: {refusal.reason}")
        for value in dynamic:
            keep_float(graph, value)
    return PassResult(modified, tuple(notes))


def _replace(graph: ir.Graph, node: ir.Node, names: Names, opset: int) -> tuple[ir.Value, ...]:
    """Puts what stands for a node in its place; its results."""
    build = Builder(node, names, opset=opset)
    try:
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        made = (_SINGLE[key](build, node),) if key in _SINGLE else _SEVERAL[key](build, node)
    except Refused:
        build.undo()
        raise
    for old, new in zip(node.outputs, made, strict=False):
        take_over(old, new)
    graph.remove(node, safe=True)
    return made


def keep_float(graph: ir.Graph, value: ir.Value) -> None:
    """Leaves out the Cast to uint8 of a value that is cast back to float by all that read it, moved or not."""
    cast = value.producer()
    members = connected(value)
    # a member that something else makes, Concat's other operand, is uint8 on its own
    if cast is None or any(member is not value and not is_moved(member) for member in members):
        return
    readers = [node for member in members for node, index in member.uses() if not hands_on(node, index)]
    outputs = any(output.is_graph_output() for output in (*members, *(node.outputs[0] for node in readers)))
    if outputs or not all(_is_cast_to_float(node) and node.graph is graph for node in readers):
        return
    for reader in readers:
        reader.outputs[0].replace_all_uses_with(reader.inputs[0])  # type: ignore[arg-type]  # a Cast reads a value
        graph.remove(reader, safe=True)
    for member in members:
        member.type = ir.TensorType(_FLOAT)
    value.replace_all_uses_with(cast.inputs[0])  # type: ignore[arg-type]
    graph.remove(cast, safe=True)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """The new value has the old one's name and readers; also where it is an output of the graph."""
    name, kind = old.name, old.type
    old.name = None
    new.name, new.shape = name, old.shape
    if new.type is None:
        new.type = kind
    old.replace_all_uses_with(new, replace_graph_outputs=True)


DECOMPOSE_QUANTIZED = FunctionPass("decompose-quantized", decompose_quantized)
"""For a target that has none of them; `decompose-operators` writes out those that a capability lacks."""
