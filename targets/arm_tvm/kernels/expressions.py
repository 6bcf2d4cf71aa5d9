"""Activations as text: what is computed of the running value `x`, in a kernel's epilogue or by itself.

    multiply(x,clip(add(x,3.0),0.0,6.0))

The text is part of a workload, so it is what a plan shows and what a tuning record is kept under.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from targets.arm_tvm.kernels import functions
from targets.arm_tvm.kernels.emitter import Emitter, broadcast

X = "x"


def evaluate(text: str, x: Any, *, emitter: Emitter, lanes: int, dtype: str) -> Any:
    """The vector that an expression gives for the vector `x`; parts that occur twice are computed once.

    Raises:
        ValueError: A name nobody knows.
    """
    known: dict[str, Any] = {X: emitter.let(x)}

    def value(node: ast.expr) -> Any:
        key = ast.unparse(node)
        if key not in known:
            known[key] = operand(node)
        return known[key]

    def operand(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OPERATIONS:
            arguments = [value(argument) for argument in node.args]
            return emitter.let(OPERATIONS[node.func.id](emitter, lanes, *arguments))
        try:
            return broadcast(float(ast.literal_eval(node)), lanes, dtype)
        except (ValueError, TypeError) as error:
            raise ValueError(f"no expression is called '{ast.unparse(node)}'") from error

    return value(ast.parse(text, mode="eval").body)


def _function(function: Callable[[Emitter, Any, int], Any]) -> Callable[..., Any]:
    return lambda emitter, lanes, value: functions.in_float32(function, emitter, value, lanes)


def _silu(emitter: Emitter, lanes: int, value: Any) -> Any:
    return value * functions.in_float32(functions.sigmoid, emitter, value, lanes)


def _maximum(_: Emitter, __: int, left: Any, right: Any) -> Any:
    from tvm import tirx

    return tirx.max(left, right)


def _minimum(_: Emitter, __: int, left: Any, right: Any) -> Any:
    from tvm import tirx

    return tirx.min(left, right)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": lambda _, __, left, right: left + right,
    "subtract": lambda _, __, left, right: left - right,
    "multiply": lambda _, __, left, right: left * right,
    "divide": lambda _, __, left, right: left / right,
    "maximum": _maximum,
    "minimum": _minimum,
    "clip": lambda _, __, value, low, high: _minimum(_, __, _maximum(_, __, value, low), high),
    "sigmoid": _function(functions.sigmoid),
    "erf": _function(functions.erf),
    "gelu": _function(functions.gelu),
    "silu": _silu,
    "tanh": _function(functions.tanh),
}
