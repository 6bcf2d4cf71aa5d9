"""ONNX operators in PyTorch: one table entry each, for arithmetic.

A function takes the node and its inputs as tensors (None where an optional one is missing) and gives one tensor, or a
tuple of them. It computes in whatever precision and memory layout it is given. An attribute that it does not cover is
refused, naming the node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NoReturn

import onnx_ir as ir
import torch
import torch.nn.functional as F

from compiler.errors import UnsupportedModel
from compiler.passes.values import display_name

Tensor = Any
"""A torch.Tensor; PyTorch's own types are not checked here, because it is optional."""

Operator = Callable[..., Tensor]


def refuse(node: ir.Node, reason: str) -> NoReturn:
    """Raises UnsupportedModel for an attribute that is not covered."""
    raise UnsupportedModel(
        f"{node.op_type} '{display_name(node)}' has no counterpart in PyTorch here: {reason}",
        remedy="Build without recovery; the pruned model itself is whole.",
    )


def integers(tensor: Tensor) -> list[int]:
    """The numbers in a tensor that says a shape, axes or sizes."""
    return [int(number) for number in tensor.reshape(-1).tolist()]


def opset(node: ir.Node) -> int:
    """The version of ONNX's operators that the node's graph is written in."""
    return node.graph.opset_imports.get("", 1) if node.graph is not None else 1


def _apply(function: Operator) -> Operator:
    return lambda node, *inputs: function(*inputs)


def _divide(node: ir.Node, left: Tensor, right: Tensor) -> Tensor:
    is_integer = not (left.is_floating_point() or right.is_floating_point())
    return torch.div(left, right, rounding_mode="trunc" if is_integer else None)


def _clip(node: ir.Node, x: Tensor, low: Tensor = None, high: Tensor = None) -> Tensor:
    get = node.attributes
    low = get.get_float("min") if low is None else low.item()
    high = get.get_float("max") if high is None else high.item()
    return x if low is None and high is None else torch.clamp(x, low, high)


def _prelu(node: ir.Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _gelu(node: ir.Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.attributes.get_string("approximate", "none"))


def _hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return torch.clamp(alpha * x + beta, 0, 1)


def _softmax(function: Operator) -> Operator:
    def run(node: ir.Node, x: Tensor) -> Tensor:
        if opset(node) >= 13:
            return function(x, dim=node.attributes.get_int("axis", -1))
        axis = node.attributes.get_int("axis", 1) % x.dim()  # before opset 13 over all axes from this one on
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return run


def _fold(function: Operator) -> Operator:
    return lambda node, *inputs: reduce(function, inputs)


def _mean(node: ir.Node, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _cast(node: ir.Node, x: Tensor) -> Tensor:
    kind = ir.DataType(node.attributes.get_int("to", 1))
    dtype = getattr(torch, kind.name.lower().replace("double", "float64"), None)
    return x.to(dtype) if dtype is not None else refuse(node, f"it casts to {kind.name}")


def _matmul(node: ir.Node, left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


def _gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
    get = node.attributes
    a, b = (a.t() if get.get_int("transA", 0) else a), (b.t() if get.get_int("transB", 0) else b)
    alpha, beta = get.get_float("alpha", 1.0), get.get_float("beta", 1.0)
    if c is None:
        return alpha * (a @ b)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _einsum(node: ir.Node, *inputs: Tensor) -> Tensor:
    return torch.einsum(node.attributes.get_string("equation", ""), *inputs)


def _reduce(function: Operator, node: ir.Node, x: Tensor, axes: Tensor = None) -> Tensor:
    get = node.attributes
    listed = integers(axes) if axes is not None else list(get.get_ints("axes", ()) or ())
    if not listed and get.get_int("noop_with_empty_axes", 0) != 0:
        return x
    return function(x, listed or list(range(x.dim())), keepdim=bool(get.get_int("keepdims", 1)))


def _norm(order: int) -> Operator:
    return lambda x, axes, keepdim: torch.linalg.vector_norm(x, order, dim=axes, keepdim=keepdim)


def _attention(node: ir.Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor = None, *past: Tensor) -> Tensor:
    get = node.attributes
    if (
        q.dim() != 4
        or any(value is not None for value in past)
        or get.get_float("softcap", 0.0)
        or len(node.outputs) > 1
    ):
        refuse(node, "only four-dimensional queries, without a cache of keys and without a cap, are covered")
    groups = q.shape[1] != k.shape[1]
    causal, scale = bool(get.get_int("is_causal", 0)), get.get_float("scale")
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=groups)


_UNARY: Mapping[str, Operator] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: Mapping[str, Operator] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Sub": torch.sub,
}
_REDUCTIONS: Mapping[str, Operator] = {
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}

ARITHMETIC: Mapping[str, Operator] = {
    **{op: _apply(function) for op, function in {**_UNARY, **_BINARY}.items()},
    **{op: partial(_reduce, function) for op, function in _REDUCTIONS.items()},
    "Attention": _attention,
    "Cast": _cast,
    "Clip": _clip,
    "Div": _divide,
    "Dropout": lambda node, x, *_: x,
    "Einsum": _einsum,
    "Elu": lambda node, x: F.elu(x, alpha=node.attributes.get_float("alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda node, x: x,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.attributes.get_float("alpha", 0.01)),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _matmul,
    "Max": _fold(torch.maximum),
    "Mean": _mean,
    "Min": _fold(torch.minimum),
    "PRelu": _prelu,
    "Softmax": _softmax(torch.softmax),
    "Sum": _fold(torch.add),
    "Swish": lambda node, x: x * torch.sigmoid(node.attributes.get_float("alpha", 1.0) * x),
    "Where": lambda node, condition, yes, no: torch.where(condition, yes, no),
}
