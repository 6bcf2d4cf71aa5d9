"""Activations in an ONNX graph: element-wise operators between one float value and another, as one expression.

    x → Sigmoid(x) → x · Sigmoid(x)     is     multiply(x,sigmoid(x))

As `graph.regions` does it in Relax: what is computed of the first value and of numbers alone belongs to an activation,
which ends with the first value behind which nothing else of it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from targets.arm_tvm.graph.quantized.tensors import constant, is_op, static_shape

MOST_STEPS = 12
"""Operators of one activation, at most."""


@dataclass(frozen=True)
class Activation:
    """Operators that one kernel computes in registers.

    Args:
        text: What it computes of `x`, as in `kernels.expressions`.
        nodes: The operators, the last one last.
    """

    text: str
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class _Part:
    text: str
    needs: tuple[ir.Node, ...]
    """Operators that it is computed by, itself included, in the order in which they were met."""


def find_activation(start: ir.Value, *, first: ir.Node | None = None) -> Activation | None:
    """The shortest activation that begins with a float value; None if what reads it is none.

    Args:
        start: The value.
        first: The operator to begin with: then others may read the value too. None: nothing else may.
    """
    parts = {start: _Part("x", ())}
    queue = [first] if first is not None else [node for node, _ in start.uses()]
    while queue and len(parts) <= MOST_STEPS:
        node = queue.pop(0)
        part = _part(node, start, parts) if node.outputs[0] not in parts else None
        if part is None:
            continue
        parts[node.outputs[0]] = part
        if _is_closed(part, start, is_shared=first is not None):
            return Activation(part.text, part.needs)
        queue += [reader for reader, _ in node.outputs[0].uses()]
    return None


def _is_closed(part: _Part, start: ir.Value, *, is_shared: bool) -> bool:
    """Whether nothing outside reads what the last operator is computed of."""
    values = [*([] if is_shared else [start]), *(node.outputs[0] for node in part.needs[:-1])]
    if any(value.is_graph_output() for value in values):
        return False
    return all(reader in part.needs for value in values for reader, _ in value.uses())


def _part(node: ir.Node, start: ir.Value, parts: Mapping[ir.Value, _Part]) -> _Part | None:
    write = OPERATORS.get(node.op_type) if is_op(node, node.op_type) else None
    result = node.outputs[0]
    shape = static_shape(result)
    if write is None or shape is None or shape != static_shape(start) or result.dtype != ir.DataType.FLOAT:
        return None
    texts: list[str] = []
    needs: list[ir.Node] = []
    for value in node.inputs:
        if value is not None and value in parts:
            texts.append(parts[value].text)
            needs += [need for need in parts[value].needs if need not in needs]
        elif (factor := _scalar(value)) is not None:
            texts.append(repr(factor))
        else:
            return None
    text = write(texts, node)
    return _Part(text, (*needs, node)) if text else None


def _scalar(value: ir.Value | None) -> float | None:
    """A number; infinity and NaN are none, nor is an input that is left out."""
    array = constant(value)
    if array is None or array.size != 1:
        return None
    number = float(np.asarray(array.reshape(()), np.float64))
    return number if np.isfinite(number) else None


def _named(name: str, count: int) -> Callable[[list[str], ir.Node], str]:
    return lambda texts, _: f"{name}({','.join(texts)})" if len(texts) == count else ""


def _divide(texts: list[str], _: ir.Node) -> str:
    """By a number: times its inverse."""
    try:
        inverse = 1 / float(texts[1])
    except (ValueError, ZeroDivisionError):
        return f"divide({texts[0]},{texts[1]})"
    return f"multiply({texts[0]},{inverse!r})"


def _leaky(texts: list[str], node: ir.Node) -> str:
    slope = node.attributes.get_float("alpha", 0.01)
    # max(x, slope · x) is LeakyRelu for slopes from 0 to 1 only.
    return f"maximum({texts[0]},multiply({texts[0]},{slope!r}))" if 0 <= slope <= 1 else ""


def _hard_sigmoid(texts: list[str], node: ir.Node) -> str:
    slope, shift = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return f"clip(add(multiply({texts[0]},{slope!r}),{shift!r}),0.0,1.0)"


def _hard_swish(texts: list[str], _: ir.Node) -> str:
    return f"multiply({texts[0]},clip(add(multiply({texts[0]},{1 / 6!r}),0.5),0.0,1.0))"


def _gelu(texts: list[str], node: ir.Node) -> str:
    return f"gelu({texts[0]})" if node.attributes.get_string("approximate", "none") == "none" else ""


OPERATORS: Mapping[str, Callable[[list[str], ir.Node], str]] = {
    "Add": _named("add", 2),
    "Sub": _named("subtract", 2),
    "Mul": _named("multiply", 2),
    "Div": _divide,
    "Max": _named("maximum", 2),
    "Min": _named("minimum", 2),
    "Clip": _named("clip", 3),
    "Relu": lambda texts, _: f"maximum({texts[0]},0.0)",
    "LeakyRelu": _leaky,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Sigmoid": _named("sigmoid", 1),
    "Tanh": _named("tanh", 1),
    "Erf": _named("erf", 1),
    "Gelu": _gelu,
}
"""Operator → writes it as an expression; an empty text where it has none for the node's attributes."""
