"""Operators that TensorRT's parser fails at, or reads as something else, written so that it takes them.

Softmax, LogSoftmax, Hardmax, ArgMax, ArgMin   a vector has one dimension, and the parser wants two:
                op(x) → Reshape(op(Reshape(x, [1, -1])), …)
MatMul          a vector by matrices of three dimensions or more:
                MatMul(v, B) → Reshape(MatMul(Reshape(v, [1, -1]), B), …)
MaxPool, AveragePool, LpPool   with ceil_mode, ONNX leaves out a last window that begins behind the data; TensorRT keeps
                it: ceil_mode goes, and where there was a window more, pads at the end make room for it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.target import PassResult, add_constant, record_origin


@dataclass(frozen=True)
class RewriteForTensorRT:
    """Writes what the parser does not take in operators that it takes; results stay equal."""

    name: str = "rewrite-for-tensorrt"

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrites the main graph and its subgraphs."""
        changed = False
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in tuple(graph):
                rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
                changed |= rewrite is not None and rewrite(node, graph)
        return PassResult(changed)


def _lift_softmax(node: ir.Node, graph: ir.Graph) -> bool:
    return _lift(node, graph, axis=-1, back=[-1])


def _lift_arg(node: ir.Node, graph: ir.Graph) -> bool:
    return _lift(node, graph, axis=0, back=[1] if node.attributes.get_int("keepdims", 1) else [])


def _lift(node: ir.Node, graph: ir.Graph, *, axis: int, back: Sequence[int]) -> bool:
    """The operator on one row of a matrix; `axis` is ONNX's default, `back` the shape of the result."""
    data = node.inputs[0]
    if data is None or _rank(data) != 1 or node.attributes.get_int("axis", axis) not in (0, -1):
        return False
    builder = _Builder(node, graph)
    (row,) = builder.add("Reshape", [data, builder.constant("row", [1, -1])], "in_rows", like=data)
    attributes = [value for name, value in node.attributes.items() if name != "axis"]
    (made,) = builder.add(node.op_type, [row], "of_rows", [*attributes, ir.AttrInt64("axis", 1)], like=node.outputs[0])
    _become(node, "Reshape", [made, builder.constant("back", list(back))])
    return True


def _lift_factor(node: ir.Node, graph: ir.Graph) -> bool:
    vector, matrices = node.inputs
    if vector is None or matrices is None or _rank(vector) != 1 or (_rank(matrices) or 0) <= 2:
        return False
    builder = _Builder(node, graph)
    (row,) = builder.add("Reshape", [vector, builder.constant("row", [1, -1])], "in_rows", like=vector)
    (made,) = builder.add("MatMul", [row, matrices], "of_rows", like=node.outputs[0])
    leading = [0] * ((_rank(matrices) or 0) - 2)  # 0: the size that the product has there
    _become(node, "Reshape", [made, builder.constant("back", [*leading, -1])])
    return True


def _end_ceil_mode(node: ir.Node, graph: ir.Graph) -> bool:
    pads = _pads_without_rounding(node) if node.attributes.get_int("ceil_mode", 0) else None
    if pads is None:
        return False
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    del node.attributes["ceil_mode"]
    return True


def _pads_without_rounding(node: ir.Node) -> list[int] | None:
    """The pads with which rounding down gives the size that the output has; None where TensorRT gives that size too."""
    data, result = node.inputs[0], node.outputs[0]
    automatic = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if data is None or data.shape is None or result.shape is None or automatic:
        return None
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    strides = list(node.attributes.get_ints("strides", [1] * len(kernel)))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))
    is_other = False
    for axis, (size, made) in enumerate(zip(data.shape[2:], result.shape[2:], strict=True)):
        if not isinstance(size, int) or not isinstance(made, int):
            return None
        room = size + pads[axis] + pads[axis + len(kernel)] - kernel[axis]
        rounded_up = -(-room // strides[axis]) + 1
        is_other |= made < rounded_up
        if made > room // strides[axis] + 1:
            pads[axis + len(kernel)] += (made - 1) * strides[axis] - room  # the last window ends where the pads do
    counts = node.attributes.get_int("count_include_pad", 0)
    grown = any(new > old for new, old in zip(pads, node.attributes.get_ints("pads", [0] * len(pads)), strict=True))
    return pads if is_other and not (counts and grown) else None


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _become(node: ir.Node, op_type: str, inputs: Sequence[ir.Value]) -> None:
    """Another operator without attributes in the node's place, under its name."""
    node.op_type = op_type
    node.attributes.clear()
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


_REWRITES: Mapping[str, Callable[[ir.Node, ir.Graph], bool]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _lift_softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), _lift_arg),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _end_ceil_mode),
    "MatMul": _lift_factor,
}


class _Builder:
    """Adds nodes around one of a graph, under names of its own made of the node's output."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        self._node, self._graph = node, graph

    def constant(self, name: str, sizes: Sequence[int]) -> ir.Value:
        """A new initializer of a shape's sizes."""
        return add_constant(self._graph, self._unique(name), np.array(sizes, np.int64))

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: Sequence[ir.Attr] = (), *, like: ir.Value
    ) -> Sequence[ir.Value]:
        """The output of a new node before this one, of the element type that `like` has."""
        made = ir.Value(name=self._unique(name), type=like.type)
        node = ir.Node("", op_type, inputs, attributes, outputs=[made], name=self._unique(name))
        record_origin(node, [self._node])
        self._graph.insert_before(self._node, node)
        return node.outputs

    def _unique(self, name: str) -> str:
        return f"{self._node.outputs[0].name}.tensorrt.{name}"
