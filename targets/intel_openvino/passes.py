"""Operators that OpenVINO reads as something else, written so that it computes what they mean.

TopK, ArgMax, ArgMin, Hardmax   over channels, rank 3 and more: where the plugin keeps values in blocks of channels,
                its AVX2 kernel takes the wrong elements: op(x, axis 1) → Squeeze(op(Unsqueeze(x), axis 2))
MatMul          a quantized vector by a matrix has a dimension too many: → of a matrix of one row, by Reshape
PRelu           a slope of shape (C,) belongs to the last axis; OpenVINO takes axis 1 where that has C channels, too:
                slope (C,) → (1, …, 1, C)
AveragePool     with ceil_mode and count_include_pad, windows that reach behind the pads are divided by too much:
                AveragePool(x, pads) → AveragePool(Pad(x, pads)), which counts all there is, and has no pads
Div             of constant integers: OpenVINO folds it and rounds down, ONNX rounds towards 0: → their quotient
Mul, Div        one channel by a constant of C channels, before a convolution: the plugin puts the constant into the
                convolution's weights and forgets to make C channels: Mul → a convolution of 1 × 1
Selu            alpha or gamma 0 is taken for the default: → γ · max(0, x)
HardSigmoid     alpha or beta 0 is taken for the default: → max(0, min(1, α·x + β))
GRU, LSTM, RNN  two of them that read one value, batch above 1: the plugin takes the transposition that it puts before
                one of them for both: each reads its own copy, by Split of Concat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.target import PassResult, add_constant, constant_of, record_origin

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_SELU_GAMMA = 1.05070102214813232421875
"""ONNX's default."""
_AXES_OPSET = 13
"""Since then Squeeze and Unsqueeze take their axes as an input."""
_COUNT_OPSET = 18
"""Since then Split must be told how many outputs of one size it has."""


@dataclass(frozen=True)
class RewriteForOpenVino:
    """Writes what OpenVINO's frontend or plugin takes for something else in operators that it takes as they are."""

    name: str = "rewrite-for-openvino"

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrites the main graph and its subgraphs."""
        opset = model.graph.opset_imports.get("", 1)
        changed = False
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in tuple(graph):
                rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
                changed |= rewrite is not None and rewrite(node, graph, opset)
            changed |= _part_recurrent(graph, opset)
        return PassResult(changed)


def _spread_slope(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    data, slope = node.inputs
    if data is None or slope is None or data.shape is None or slope.shape is None:
        return False
    rank, sizes = len(data.shape), tuple(slope.shape)
    if len(sizes) != 1 or rank < 3 or sizes[0] == 1:
        return False
    wanted = np.array([*[1] * (rank - 1), -1], np.int64)
    shape = ir.Shape([*[1] * (rank - 1), sizes[0]])
    builder = _Builder(node, graph)
    (spread,) = builder.add("Reshape", [slope, builder.constant("shape", wanted)], "slope", shape=shape, like=slope)
    node.replace_input_with(1, spread)
    return True


def _pad_before_pooling(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    pads: Sequence[int] = attributes.get("pads", ())
    data = node.inputs[0]
    if not (attributes.get("ceil_mode") and attributes.get("count_include_pad") and any(pads)):
        return False
    if data is None or data.shape is None or data.dtype is None:
        return False
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    sizes = [*list(data.shape)[:2], *(_grown(*three) for three in zip(list(data.shape)[2:], begins, ends, strict=True))]
    builder = _Builder(node, graph)
    places = builder.constant("pads", np.array([0, 0, *begins, 0, 0, *ends], np.int64))
    (padded,) = builder.add("Pad", [data, places], "padded", shape=ir.Shape(sizes), like=data)
    node.replace_input_with(0, padded)
    node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
    return True


def _grown(size: object, begin: int, end: int) -> int | str | None:
    return size + begin + end if isinstance(size, int) else None


def _scale_relu(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    """Selu where a factor is 0: what is left is a product."""
    data = node.inputs[0]
    alpha, gamma = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("gamma", _SELU_GAMMA)
    if data is None or data.dtype is None or (alpha and gamma):
        return False
    builder = _Builder(node, graph)
    factor = builder.constant("gamma", np.array(gamma, data.dtype.numpy()))
    (positive,) = builder.add("Relu", [data], "relu", shape=data.shape, like=data)
    _become(node, "Mul", [positive, factor])
    return True


def _write_hard_sigmoid(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    data = node.inputs[0]
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    if data is None or data.dtype is None or (alpha and beta):
        return False
    builder, kind = _Builder(node, graph), data.dtype.numpy()
    factor, addend, zero, one = (
        builder.constant(name, np.array(number, kind))
        for name, number in {"alpha": alpha, "beta": beta, "zero": 0, "one": 1}.items()
    )
    (product,) = builder.add("Mul", [data, factor], "product", shape=data.shape, like=data)
    (total,) = builder.add("Add", [product, addend], "sum", shape=data.shape, like=data)
    (above,) = builder.add("Max", [total, zero], "above", shape=data.shape, like=data)
    _become(node, "Min", [above, one])
    return True


def _become(node: ir.Node, op_type: str, inputs: Sequence[ir.Value]) -> None:
    """Another operator without attributes in the node's place, under its name."""
    node.op_type = op_type
    node.attributes.clear()
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _spread_by_convolution(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    pair = _one_channel_and_factors(node)
    if pair is None or not any(use.node.op_type in _CONVOLUTIONS and use.idx == 0 for use in node.outputs[0].uses()):
        return False
    data, factors = pair
    builder = _Builder(node, graph)
    weights = builder.constant("weights", 1 / factors if node.op_type == "Div" else factors)
    node.op_type = "Conv"
    node.resize_inputs(2)
    node.replace_input_with(0, data)
    node.replace_input_with(1, weights)
    return True


def _divide(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    """Constant integers are divided here: OpenVINO folds them and rounds down, ONNX rounds towards 0."""
    dividend, divisor = map(constant_of, node.inputs)
    if dividend is None or divisor is None or dividend.dtype.kind not in "iu" or not divisor.all():
        return _spread_by_convolution(node, graph, opset)
    quotient = (np.abs(dividend) // np.abs(divisor) * np.sign(dividend) * np.sign(divisor)).astype(dividend.dtype)
    _become(node, "Identity", [_Builder(node, graph).constant("quotient", quotient)])
    return True


def _one_channel_and_factors(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """Data of one channel and what makes C of it, as the weights of a convolution, (C, 1, 1, …)."""
    for place in (0,) if node.op_type == "Div" else (0, 1):
        data, factors = node.inputs[place], node.inputs[1 - place]
        if data is None or data.shape is None or factors is None or factors.const_value is None:
            continue
        array, rank = factors.const_value.numpy(), len(data.shape)
        sizes = (*[1] * (rank - array.ndim), *array.shape)
        is_per_channel = rank >= 3 and len(sizes) == rank and sizes[1] > 1 and array.size == sizes[1]
        if is_per_channel and data.shape[1] == 1:
            return data, array.reshape(sizes[1], *[1] * (rank - 1))
    return None


def _part_recurrent(graph: ir.Graph, opset: int) -> bool:
    """Gives each recurrent node that shares its input with another one a copy of it."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        data = node.inputs[0] if node.op_type in _RECURRENT and node.inputs else None
        if data is not None and data.shape is not None and len(data.shape) == 3 and data.shape[1] != 1:
            readers.setdefault(data, []).append(node)
    shared = {data: nodes for data, nodes in readers.items() if len(nodes) > 1}
    for data, nodes in shared.items():
        _copy_for(data, nodes, graph, opset)
    return bool(shared)


def _copy_for(data: ir.Value, nodes: Sequence[ir.Node], graph: ir.Graph, opset: int) -> None:
    builder, sizes, count = _Builder(nodes[0], graph), list(data.shape or ()), len(nodes)
    whole = ir.Shape([sizes[0] * count if isinstance(sizes[0], int) else None, *sizes[1:]])
    (joined,) = builder.add("Concat", [data] * count, "copies", {"axis": 0}, shape=whole, like=data)
    attributes = {"axis": 0, "num_outputs": count} if opset >= _COUNT_OPSET else {"axis": 0}
    copies = builder.add("Split", [joined], "copy", attributes, count=count, shape=ir.Shape(sizes), like=data)
    for node, copy in zip(nodes, copies, strict=True):
        node.replace_input_with(0, copy)


def _leave_channel_axis(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    """Another axis before the channels: the plugin then keeps the values in the model's own order."""
    data = node.inputs[0]
    if data is None or data.shape is None or len(data.shape) < 3:
        return False
    rank, default = len(data.shape), 0 if node.op_type.startswith("Arg") else -1
    if node.attributes.get_int("axis", default) % rank != 1:
        return False
    builder = _Builder(node, graph)
    sizes = list(data.shape)
    (apart,) = builder.insert_axis(data, opset, ir.Shape([sizes[0], 1, *sizes[1:]]))
    node.replace_input_with(0, apart)
    node.attributes["axis"] = ir.AttrInt64("axis", 2)
    for output in node.outputs:
        if output.name:
            builder.remove_axis(output, opset)
    return True


def _quantizers(value: ir.Value) -> tuple[ir.Node, ...]:
    """QuantizeLinear and DequantizeLinear behind which a value stands; none otherwise."""
    last = value.producer()
    before = last.inputs[0] if last is not None and last.op_type == "DequantizeLinear" else None
    first = before.producer() if before is not None else None
    return (first, last) if last is not None and first is not None and first.op_type == "QuantizeLinear" else ()


def _lift_vector(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    vector, matrix = node.inputs
    if vector is None or matrix is None or vector.shape is None or matrix.shape is None:
        return False
    if len(vector.shape) != 1 or len(matrix.shape) < 2:
        return False
    builder, shape = _Builder(node, graph), ir.Shape([1, *vector.shape])
    quantizers = _quantizers(vector)
    source = quantizers[0].inputs[0] if quantizers else vector  # behind them the plugin takes the Reshape out again
    row = builder.constant("row", np.array([1, -1], np.int64))
    (rows,) = builder.add("Reshape", [source, row], "in_rows", shape=shape, like=source)
    for quantizer in quantizers:
        inputs, name = [rows, *quantizer.inputs[1:]], f"rows_{quantizer.op_type}"
        (rows,) = builder.add(quantizer.op_type, inputs, name, shape=shape, like=quantizer.outputs[0])
    *leading, _, columns = matrix.shape
    shape = ir.Shape([*leading, 1, columns])
    (made,) = builder.add("MatMul", [rows, matrix], "of_rows", shape=shape, like=node.outputs[0])
    sizes = [*[0] * len(leading), -1]  # 0: the size that the product has there
    _become(node, "Reshape", [made, builder.constant("back", np.array(sizes, np.int64))])
    return True


_REWRITES: Mapping[str, Callable[[ir.Node, ir.Graph, int], bool]] = {
    **dict.fromkeys(("ArgMax", "ArgMin", "Hardmax", "TopK"), _leave_channel_axis),
    "AveragePool": _pad_before_pooling,
    "Div": _divide,
    "Mul": _spread_by_convolution,
    "HardSigmoid": _write_hard_sigmoid,
    "MatMul": _lift_vector,
    "PRelu": _spread_slope,
    "Selu": _scale_relu,
}


class _Builder:
    """Adds nodes before one of a graph, under names of its own made of the node's output."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        self._node, self._graph = node, graph
        self._name = next(str(value.name) for value in node.outputs if value.name)
        self._axes: ir.Value | None = None

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        """A new initializer."""
        return add_constant(self._graph, self._unique(name), values)

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, object] | None = None,
        *,
        count: int = 1,
        shape: ir.Shape | None,
        like: ir.Value | None,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node, all of this shape and of the element type that `like` has."""
        unique = self._unique(name)
        names = [unique] if count == 1 else [f"{unique}.{index}" for index in range(count)]
        kind = like.type if like is not None else None
        outputs = [
            ir.Value(name=output, type=kind, shape=shape.copy() if shape is not None else None) for output in names
        ]
        node = ir.node(op_type, inputs, attributes=attributes, outputs=outputs, name=unique)  # type: ignore[arg-type]
        record_origin(node, [self._node])
        self._graph.insert_before(self._node, node)
        return outputs

    def insert_axis(self, value: ir.Value, opset: int, shape: ir.Shape) -> Sequence[ir.Value]:
        """The value with an axis of size 1 in place 1, before the node."""
        inputs, attributes = self._axis(opset)
        return self.add("Unsqueeze", [value, *inputs], "apart", attributes, shape=shape, like=value)

    def remove_axis(self, output: ir.Value, opset: int) -> None:
        """The node's output gets that axis, too; a Squeeze behind it gives what it was, under its name."""
        inputs, attributes = self._axis(opset)
        sizes = None if output.shape is None else list(output.shape)
        whole = ir.Value(type=output.type, shape=output.shape)
        name, output.name = str(output.name), f"{output.name}.openvino.in_place_1"
        whole.name = name
        squeeze = ir.node(
            "Squeeze",
            [output, *inputs],
            attributes,  # type: ignore[arg-type]
            outputs=[whole],
            name=f"{name}.openvino.together",
        )
        record_origin(squeeze, [self._node])
        output.replace_all_uses_with(whole, replace_graph_outputs=True)
        squeeze.replace_input_with(0, output)
        output.shape = None if sizes is None else ir.Shape([sizes[0], 1, *sizes[1:]])
        self._graph.insert_after(self._node, squeeze)

    def _axis(self, opset: int) -> tuple[list[ir.Value], dict[str, object]]:
        """Axis 1 as Squeeze and Unsqueeze take it: an input since opset 13, an attribute before."""
        if opset < _AXES_OPSET:
            return [], {"axes": [1]}
        if self._axes is None:
            self._axes = self.constant("axis", np.array([1], np.int64))
        return [self._axes], {}

    def _unique(self, name: str) -> str:
        return f"{self._name}.openvino.{name}"
