"""What follows an operator inside its kernel: a bias, a residual, an activation, QuantizeLinear."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from targets.arm_tvm.graph.quantized.activations import find_activation
from targets.arm_tvm.graph.quantized.tensors import (
    Floats,
    Quantized,
    bias,
    constant,
    dequantized,
    is_op,
    only_reader,
    quantized,
    static_shape,
)
from targets.arm_tvm.kernels.integer.specs import Epilogue


@dataclass
class Tail:
    """The chain behind an operator.

    Args:
        end: The last value the kernel makes.
        nodes: What the chain replaces, the last one last.
        bias: Added per channel (an Add with a constant); None if nothing is.
        residual: Added element by element.
        low: Least value of the activation, where that is Relu or Clip.
        high: Greatest.
        activations: Other activations, one after the other, as expressions of `x`.
        result: How the end is quantized; None where it is float.
    """

    end: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    bias: Floats | None = None
    residual: Quantized | None = None
    low: float = -math.inf
    high: float = math.inf
    activations: tuple[str, ...] = ()
    result: Quantized | None = None


def follow(value: ir.Value, *, channels: int = 0, residual: bool = False, first: ir.Node | None = None) -> Tail:
    """The longest chain behind a value that one kernel can take.

    Args:
        value: What the operator makes.
        channels: Size of the last axis, along which a constant may be added; 0: none may.
        residual: Whether another quantized tensor may be added.
        first: The activation's operator that the chain begins with; others may read the value too. None: no other may.
    """
    # The order of these steps is the order in which a kernel computes them.
    tail = Tail(value)
    if channels:
        _take_bias(tail, channels)
    if residual:
        _take_residual(tail)
    _take_activations(tail, first)
    reader = only_reader(tail.end)
    if reader is not None and is_op(reader, "QuantizeLinear") and reader.inputs[0] is tail.end:
        tail.result = quantized(reader)
        if tail.result is not None:
            _advance(tail, reader)
    return tail


def _advance(tail: Tail, node: ir.Node) -> None:
    tail.nodes.append(node)
    tail.end = node.outputs[0]


def _take_bias(tail: Tail, channels: int) -> None:
    reader = only_reader(tail.end)
    if reader is None or not is_op(reader, "Add") or static_shape(reader.outputs[0]) != static_shape(tail.end):
        return
    other = reader.inputs[1] if reader.inputs[0] is tail.end else reader.inputs[0]
    addend = bias(other, channels) if constant(other) is not None else None
    if addend is not None:
        tail.bias = addend
        _advance(tail, reader)


def _take_residual(tail: Tail) -> None:
    reader = only_reader(tail.end)
    if reader is None or not is_op(reader, "Add"):
        return
    other = reader.inputs[1] if reader.inputs[0] is tail.end else reader.inputs[0]
    residual = dequantized(other)
    if residual is None or static_shape(other) != static_shape(tail.end) or static_shape(other) is None:
        return
    tail.residual = residual
    _advance(tail, reader)


def _take_activations(tail: Tail, first: ir.Node | None) -> None:
    activations, end, begin = [], tail.end, first
    while (activation := find_activation(end, first=begin)) is not None:
        activations.append(activation)
        end, begin = activation.nodes[-1].outputs[0], None
    reader = first or only_reader(tail.end)
    limits = _limits(reader, tail.end) if len(activations) < 2 and reader is not None else None
    # Limits are cut after rounding, sixteen results at a time.
    if limits is not None and reader is not None and all(known.nodes == (reader,) for known in activations):
        tail.low, tail.high = limits
        _advance(tail, reader)
        return
    tail.activations = tuple(activation.text for activation in activations)
    for node in (node for activation in activations for node in activation.nodes):
        _advance(tail, node)


def _limits(node: ir.Node, value: ir.Value) -> tuple[float, float] | None:
    """Least and greatest result of Relu or Clip; None of other operators."""
    if node.inputs[0] is not value:
        return None
    if is_op(node, "Relu"):
        return 0.0, math.inf
    limits = [constant(limit) for limit in node.inputs[1:] if limit is not None]
    if not is_op(node, "Clip") or len(limits) != len(node.inputs) - 1:
        return None
    if any(limit is None or limit.size != 1 for limit in limits):
        return None
    ends = [float(np.asarray(limit).reshape(())) for limit in limits]
    return ends[0] if ends else -math.inf, ends[1] if len(ends) > 1 else math.inf


def epilogue_of(tail: Tail) -> tuple[Epilogue, float, float]:
    """The chain as numbers: epilogue, scale of the result (1 if float), what the residual's zero point adds."""
    step = tail.result.scale if tail.result is not None else 1.0
    # An activation is computed of numbers as the model has them; steps of the result come behind it.
    unit = 1.0 if tail.activations else step
    residual = tail.residual.scale / unit if tail.residual is not None else None
    shift = -residual * tail.residual.zero_point if tail.residual is not None and residual is not None else 0.0
    last = (residual, tail.activations, step / unit)
    if tail.result is None:
        return Epilogue(False, 0, tail.low, tail.high, *last), unit, shift
    zero = tail.result.zero_point
    return Epilogue(True, zero, _limit(tail.low, unit, zero), _limit(tail.high, unit, zero), *last), unit, shift


def _limit(limit: float, unit: float, zero: int) -> float:
    """A bound of the activation in quantized steps, as QuantizeLinear rounds it."""
    if math.isinf(limit):
        return -128.0 if limit < 0 else 127.0
    return float(np.clip(np.rint(np.float32(limit) / np.float32(unit)) + zero, -128, 127))
