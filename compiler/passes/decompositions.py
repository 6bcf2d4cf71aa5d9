"""Rules that write an operator out in simpler ones, where ONNX has no function body for it or an inaccurate one.

Each rule takes a node and gives the body of a function, or None where it does not cover the node. ONNX's own bodies of
LayerNormalization and GroupNormalization compute the variance as E[x²] − E[x]², which loses all digits where the mean
is large; here it is E[(x − E[x])²].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from compiler.passes.recurrent_bodies import layer_of, write_out

_FLOAT = int(ir.DataType.FLOAT)


@dataclass(frozen=True)
class Body:
    """The text of a function's body.

    Args:
        inputs: Names in the body of the node's inputs.
        outputs: Names of its outputs; the node may have fewer.
        lines: Nodes in ONNX text.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lines: tuple[str, ...]


Rule = Callable[[ir.Node, int], Body | None]
"""Node and opset of the model → body."""


def _reduce(op: str, source: str, axes: Sequence[int], opset: int, result: str) -> list[str]:
    """A reduction that keeps its dimensions; axes are an attribute before opset 18 and an input after."""
    if opset < 18:
        return [f"{result} = {op}<axes = [{', '.join(map(str, axes))}], keepdims = 1>({source})"]
    listed = f"{result}_axes = Constant<value_ints: ints = [{', '.join(map(str, axes))}]>()"
    return [listed, f"{result} = {op}<keepdims = 1>({source}, {result}_axes)"]


def _vector(name: str, numbers: Sequence[int]) -> str:
    return f"{name} = Constant<value_ints: ints = [{', '.join(map(str, numbers))}]>()"


def _unsqueeze(source: str, axes: Sequence[int], opset: int, result: str) -> list[str]:
    if opset < 13:
        return [f"{result} = Unsqueeze<axes = [{', '.join(map(str, axes))}]>({source})"]
    return [_vector(f"{result}_axes", axes), f"{result} = Unsqueeze({source}, {result}_axes)"]


def _number(name: str, number: float, dtype: ir.DataType) -> list[str]:
    """A scalar of a type; text has literals of float only."""
    literal = f"{name}_float = Constant<value_float: float = {number!r}>()"
    return [literal, f"{name} = Cast<to = {int(dtype)}>({name}_float)"]


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _dtype(node: ir.Node) -> ir.DataType:
    source = node.inputs[0]
    return ir.DataType.FLOAT if source is None or source.dtype is None else source.dtype


def _used_outputs(node: ir.Node) -> int:
    return max((index + 1 for index, value in enumerate(node.outputs) if value.name), default=0)


def _normalized(axes: Sequence[int], opset: int, dtype: ir.DataType, epsilon: float) -> list[str]:
    """`normalized` = (X − mean) / √(variance + epsilon) of `X`, in float32 where X is narrower."""
    computed = dtype if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    wide = "X" if dtype == computed else "wide"
    return [
        *([] if wide == "X" else [f"wide = Cast<to = {_FLOAT}>(X)"]),
        *_reduce("ReduceMean", wide, axes, opset, "mean"),
        f"deviation = Sub({wide}, mean)",
        "square = Mul(deviation, deviation)",
        *_reduce("ReduceMean", "square", axes, opset, "variance"),
        *_number("epsilon", epsilon, computed),
        "shifted = Add(variance, epsilon)",
        "spread = Sqrt(shifted)",
        f"{'normalized' if wide == 'X' else 'quotient'} = Div(deviation, spread)",
        *([] if wide == "X" else [f"normalized = Cast<to = {int(dtype)}>(quotient)"]),
    ]


def _layer_normalization(node: ir.Node, opset: int) -> Body | None:
    rank = _rank(node.inputs[0])
    if rank is None or _used_outputs(node) > 1:
        return None
    first = node.attributes.get_int("axis", -1) % rank
    lines = _normalized(range(first, rank), opset, _dtype(node), node.attributes.get_float("epsilon", 1e-5))
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return Body(("X", "S"), ("Y",), (*lines, "Y = Mul(normalized, S)"))
    return Body(("X", "S", "B"), ("Y",), (*lines, "scaled = Mul(normalized, S)", "Y = Add(scaled, B)"))


def _instance_normalization(node: ir.Node, opset: int) -> Body | None:
    rank = _rank(node.inputs[0])
    if rank is None or rank < 3:
        return None
    spatial = list(range(2, rank))
    return Body(
        ("X", "S", "B"),
        ("Y",),
        (
            *_normalized(spatial, opset, _dtype(node), node.attributes.get_float("epsilon", 1e-5)),
            # (C,) becomes (C, 1, …), which is broadcast over batch and places
            *_unsqueeze("S", range(1, rank - 1), opset, "scale"),
            *_unsqueeze("B", range(1, rank - 1), opset, "shift"),
            "scaled = Mul(normalized, scale)",
            "Y = Add(scaled, shift)",
        ),
    )


def _group_normalization(node: ir.Node, opset: int) -> Body | None:
    source = node.inputs[0]
    rank = _rank(source)
    if source is None or source.shape is None or rank is None or rank < 3 or opset < 21:
        return None  # before opset 21 scale and shift are per group
    groups = node.attributes.get_int("num_groups", 1)
    normalized = _normalized([2], opset, _dtype(node), node.attributes.get_float("epsilon", 1e-5))
    return Body(
        ("x", "S", "B"),
        ("Y",),
        (
            _vector("grouped", [0, groups, -1]),
            "X = Reshape(x, grouped)",
            *normalized,
            "shape = Shape(x)",
            "whole = Reshape(normalized, shape)",
            *_unsqueeze("S", range(1, rank - 1), opset, "scale"),
            *_unsqueeze("B", range(1, rank - 1), opset, "shift"),
            "scaled = Mul(whole, scale)",
            "Y = Add(scaled, shift)",
        ),
    )


def _mean_variance_normalization(node: ir.Node, opset: int) -> Body | None:
    axes = list(node.attributes.get_ints("axes", (0, 2, 3)) or (0, 2, 3))
    dtype = _dtype(node)
    return Body(
        ("X",),
        ("Y",),
        (
            *_reduce("ReduceMean", "X", axes, opset, "mean"),
            "deviation = Sub(X, mean)",
            "square = Mul(deviation, deviation)",
            *_reduce("ReduceMean", "square", axes, opset, "variance"),
            "root = Sqrt(variance)",
            *_number("epsilon", 1e-9, dtype),
            "spread = Add(root, epsilon)",
            "Y = Div(deviation, spread)",
        ),
    )


def _lp_normalization(node: ir.Node, opset: int) -> Body | None:
    p, axis, dtype = node.attributes.get_int("p", 2), node.attributes.get_int("axis", -1), _dtype(node)
    return Body(
        ("X",),
        ("Y",),
        (
            *_reduce(f"ReduceL{p}", "X", [axis], opset, "norm"),
            # the operator gives 0 for a norm of 0; the quotient would be NaN
            *_number("smallest", float(dtype.tiny), dtype),
            "divisor = Max(norm, smallest)",
            "Y = Div(X, divisor)",
        ),
    )


def _attention(node: ir.Node, opset: int) -> Body | None:
    """Plain attention of rank 4 with as many heads in Q, K and V; ONNX's own body covers the rest."""
    get, inputs = node.attributes, [*node.inputs, None, None, None]
    q, k, mask = inputs[0], inputs[1], inputs[3]
    if any(_rank(value) != 4 for value in inputs[:3]) or any(value is not None for value in inputs[4:]):
        return None
    special = get.get_int("is_causal", 0) or get.get_float("softcap", 0) or _used_outputs(node) > 1
    if special or q is None or k is None or q.shape is None or k.shape is None or q.shape[1] != k.shape[1]:
        return None
    size = q.shape[3]
    scale = get.get_float("scale", 0) or (float(size) ** -0.5 if isinstance(size, int) else 0.0)
    if scale <= 0.0 or (mask is not None and mask.dtype != q.dtype):
        return None
    dtype = _dtype(node)
    narrow = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    scores = "scores" if mask is None else "masked"
    return Body(
        ("Q", "K", "V") if mask is None else ("Q", "K", "V", "M"),
        ("Y",),
        (
            "keys = Transpose<perm = [0, 1, 3, 2]>(K)",
            "products = MatMul(Q, keys)",
            *_number("scale", scale, dtype),
            "scores = Mul(products, scale)",
            *([] if mask is None else ["masked = Add(scores, M)"]),
            *([f"wide = Cast<to = {_FLOAT}>({scores})"] if narrow else []),
            f"{'weights32' if narrow else 'weights'} = Softmax<axis = -1>({'wide' if narrow else scores})",
            *([f"weights = Cast<to = {int(dtype)}>(weights32)"] if narrow else []),
            "Y = MatMul(weights, V)",
        ),
    )


def _recurrent(node: ir.Node, opset: int) -> Body | None:
    layer = layer_of(node, opset)
    return None if layer is None else Body(layer.inputs, layer.outputs, write_out(layer))


RULES: Mapping[str, Rule] = {
    "Attention": _attention,
    "GRU": _recurrent,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RNN": _recurrent,
}
"""Operator → its rule."""
