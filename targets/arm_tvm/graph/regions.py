"""Activations in a graph: element-wise operators between one value and another, as one expression.

    x → sigmoid(x) → x · sigmoid(x)     is     multiply(x,sigmoid(x))

A region begins with one variable. What is computed of it and of numbers alone belongs to the region, and it ends with
the first variable behind which nothing else of the region is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.graph.reading import constant, number, operator_name, shape_of

MOST_STEPS = 12
"""Operators of one activation, at most."""
Users = Mapping[Any, Sequence[Any]]


@dataclass(frozen=True)
class Region:
    """An activation.

    Args:
        text: What it computes of `x`, as in `kernels.expressions`.
        last: The variable of its result.
        inner: The variables between, without the first.
    """

    text: str
    last: Any
    inner: tuple[Any, ...]


@dataclass(frozen=True)
class _Part:
    text: str
    needs: frozenset[Any]
    """Variables that it is computed of, the first one included."""


def find_region(start: Any, users: Users) -> Region | None:
    """The shortest region that begins with a variable; None if what reads it is no activation.

    Args:
        start: The variable.
        users: Variable → bindings that read it, in order; None stands for the function's result.
    """
    parts = {start: _Part("x", frozenset())}
    queue = list(users.get(start, ()))
    while queue and len(parts) <= MOST_STEPS:
        binding = queue.pop(0)
        if binding is None or binding.var in parts:
            continue
        part = _part(binding, start, parts)
        if part is None:
            continue
        parts[binding.var] = part
        if _is_closed(part.needs, binding, users):
            inner = tuple(var for var in parts if var in part.needs and not var.same_as(start))
            return Region(part.text, binding.var, inner)
        queue += users.get(binding.var, ())
    return None


def _is_closed(needs: frozenset[Any], last: Any, users: Users) -> bool:
    """Whether nothing outside reads what the last one is computed of."""
    readers = [reader for var in needs for reader in users.get(var, ())]
    return all(reader is not None and (reader.var in needs or reader is last) for reader in readers)


def _part(binding: Any, start: Any, parts: Mapping[Any, _Part]) -> _Part | None:
    value = binding.value
    write = _OPERATORS.get(operator_name(value))
    if write is None or shape_of(binding.var) != shape_of(start) or binding.var.ty.dtype != start.ty.dtype:
        return None
    texts, needs = [], set()
    for argument in value.args:
        if argument in parts:
            texts.append(parts[argument].text)
            needs |= {argument, *parts[argument].needs}
        elif (factor := _scalar(argument)) is not None:
            texts.append(repr(factor))
        else:
            return None
    text = write(texts, value)
    return _Part(text, frozenset(needs)) if text and needs else None


def _scalar(argument: Any) -> float | None:
    array = constant(argument)
    if array is None:
        return number(argument)
    return float(array.reshape(())) if array.size == 1 else None


def _named(name: str) -> Callable[[list[str], Any], str]:
    return lambda texts, _: f"{name}({','.join(texts)})"


def _divide(texts: list[str], _: Any) -> str:
    """By a number: times its inverse."""
    try:
        inverse = 1 / float(texts[1])
    except (ValueError, ZeroDivisionError):
        return f"divide({texts[0]},{texts[1]})"
    return f"multiply({texts[0]},{inverse!r})"


def _leaky(texts: list[str], value: Any) -> str:
    slope = float(value.attrs.alpha)
    # max(x, slope · x) is LeakyRelu for slopes from 0 to 1 only.
    return f"maximum({texts[0]},multiply({texts[0]},{slope!r}))" if 0 <= slope <= 1 else ""


_SAME_NAME = ("add", "subtract", "multiply", "maximum", "minimum", "clip", "sigmoid", "erf")
_OPERATORS: Mapping[str, Callable[[list[str], Any], str]] = {
    **{f"relax.{name}": _named(name) for name in _SAME_NAME},
    "relax.divide": _divide,
    "relax.nn.relu": lambda texts, _: f"maximum({texts[0]},0.0)",
    "relax.nn.silu": _named("silu"),
    "relax.nn.gelu": _named("gelu"),
    "relax.nn.leakyrelu": _leaky,
}
