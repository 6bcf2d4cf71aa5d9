"""shift-quantized: uint8 between QuantizeLinear and DequantizeLinear becomes int8, with zero points less by 128.

(q − z)·s = ((q − 128) − (z − 128))·s, and saturation at 0 and 255 becomes that at −128 and 127: no result changes.
ONNX Runtime's quantizer writes uint8 by default; kernels of other runtimes multiply signed bytes.

A value is shifted together with all that hand it on as it is (Reshape, Transpose, MaxPool, Concat, …). It stays where
another operator reads it, where it is an input or output of a graph, or where a zero point is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult, add_constant
from compiler.passes.values import Names, constant_of, replace_input

# the distance of uint8 0…255 from int8 −128…127; zero points move along, so no value changes
SHIFT = 128

_UINT8, _INT8 = ir.DataType.UINT8, ir.DataType.INT8
_MOVES = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that hand on elements of their first input. MaxPool pads with the least number of the type."""


def shift_quantized(model: ir.Model) -> PassResult:
    """Shifts every set of uint8 values of the main graph that can be."""
    names, modified, notes = Names(model), False, list[str]()
    seen: set[ir.Value] = set()
    for node in list(model.graph):
        for value in (*node.outputs, *node.inputs):
            if value is None or value in seen or value.dtype != _UINT8 or not _is_quantized(value):
                continue
            values = connected(value)
            seen.update(values)
            if reason := next(filter(None, map(_why_not, values)), ""):
                notes.append(f"'{value.name}' stays uint8: {reason}")
            else:
                _shift(model, values, names)
                modified = True
    return PassResult(modified, tuple(notes))


def _is_quantized(value: ir.Value) -> bool:
    """Whether QuantizeLinear makes a value, or DequantizeLinear reads it: zero points are uint8, too."""
    source = value.producer()
    made = source is not None and _is(source, "QuantizeLinear")
    return made or any(index == 0 and _is(node, "DequantizeLinear") for node, index in value.uses())


def _is(node: ir.Node, *operators: str) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in operators


def hands_on(node: ir.Node, index: int) -> bool:
    """Whether a node only moves elements of this input."""
    return _is(node, "Concat") or (index == 0 and _is(node, *_MOVES) and len(node.outputs) == 1)


def is_moved(value: ir.Value) -> bool:
    """Whether a value has elements of others, moved."""
    source = value.producer()
    return source is not None and hands_on(source, 0)


def connected(value: ir.Value) -> list[ir.Value]:
    """The value, and all that it is handed on as, or is made of; in an order that does not depend on the run."""
    members, waiting = dict[ir.Value, None](), [value]
    while waiting:
        member = waiting.pop()
        if member in members:
            continue
        members[member] = None
        waiting += [node.outputs[0] for node, index in member.uses() if hands_on(node, index)]
        source = member.producer()
        if source is not None and hands_on(source, 0):
            waiting += [read for read in source.inputs[: None if _is(source, "Concat") else 1] if read is not None]
    return list(members)


def _why_not(value: ir.Value) -> str:
    """Why a value cannot be int8; empty where it can."""
    source = value.producer()
    if value.is_graph_input() or value.is_graph_output():
        return "it is an input or output of the graph"
    if source is None and constant_of(value) is None:
        return "it is given at run time"
    if source is not None and not hands_on(source, 0) and not _has_constant_zero(source, "QuantizeLinear"):
        return f"{source.op_type} makes it"
    for node, index in value.uses():
        if node.graph is not (source.graph if source is not None else value.graph):
            return "a subgraph reads it"
        if not hands_on(node, index) and not (index == 0 and _has_constant_zero(node, "DequantizeLinear")):
            return f"{node.op_type} reads it"
    return ""


def _has_constant_zero(node: ir.Node, operator: str) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return _is(node, operator) and (zero is None or constant_of(zero) is not None)


def _shift(model: ir.Model, values: Iterable[ir.Value], names: Names) -> None:
    constants: dict[ir.Value | None, ir.Value] = {}

    def shifted(old: ir.Value | None, wish: str) -> ir.Value:
        if old not in constants or old is None:
            array = np.zeros((), np.uint8) if old is None else np.asarray(constant_of(old))
            shifted = (array.astype(np.int16) - SHIFT).astype(np.int8)
            constants[old] = add_constant(model.graph, names.fresh(wish), shifted)
        return constants[old]

    for value in values:
        source = value.producer()
        if source is not None and _is(source, "QuantizeLinear"):
            _shift_zero(model, source, shifted)
        for node, index in list(value.uses()):
            if _is(node, "DequantizeLinear") and index == 0:
                _shift_zero(model, node, shifted)
            if source is None:
                replace_input(node, index, shifted(value, f"{value.name}_int8"))
        if source is None:
            _forget(model, value)
        else:
            value.type = ir.TensorType(_INT8)


def _shift_zero(model: ir.Model, node: ir.Node, shifted: Callable[[ir.Value | None, str], ir.Value]) -> None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype == _INT8:
        return  # another value of the set was read by this node
    new = shifted(zero, f"{node.outputs[0].name}_zero_point")
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    replace_input(node, 2, new)
    if "output_dtype" in node.attributes and node.op_type == "QuantizeLinear":
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", _INT8)
    if zero is not None:
        _forget(model, zero)


def _forget(model: ir.Model, value: ir.Value) -> None:
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        model.graph.initializers.pop(str(value.name), None)


SHIFT_QUANTIZED = FunctionPass("shift-quantized", shift_quantized)
