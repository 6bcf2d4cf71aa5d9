"""Quantized tensors of a Q/DQ graph: what QuantizeLinear and DequantizeLinear say of scale, zero point and type."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quantized:
    """A tensor of int8 or uint8 with one scale.

    Args:
        value: The integers, as the graph has them.
        scale: What one step is worth.
        zero_point: The integer that means zero, −128 to 127: of a `uint8` tensor, less 128.
        dtype: `int8` or `uint8`.
    """

    value: ir.Value
    scale: float
    zero_point: int
    dtype: str

    def agrees(self, other: Quantized) -> bool:
        """Whether the same integers mean the same numbers."""
        return (self.scale, self.zero_point) == (other.scale, other.zero_point)


@dataclass(frozen=True)
class Weights:
    """A constant of int8.

    Args:
        values: The integers; zero means zero.
        scale: One per output channel.
    """

    values: NDArray[np.int8]
    scale: Floats


def is_op(node: ir.Node | None, *names: str) -> bool:
    """Whether a node is one of those operators of the default domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in names


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """A value's content, if the graph holds it."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """A value's dimensions, if all are known and none is zero."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    shape = tuple(value.shape.numpy())
    return shape if all(shape) else None


def dequantized(value: ir.Value | None) -> Quantized | None:
    """The integers behind a float value, where DequantizeLinear made it with one scale; None elsewhere."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear") or constant(node.inputs[0]) is not None:
        return None
    return _parameters(node, node.inputs[0])


def quantized(node: ir.Node) -> Quantized | None:
    """What a QuantizeLinear makes, where it has one scale; None elsewhere."""
    return _parameters(node, node.outputs[0])


def _parameters(node: ir.Node, integers: ir.Value | None) -> Quantized | None:
    if integers is None or integers.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return None
    scale = constant(node.inputs[1])
    zero = _zero_point(node)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
        return None
    dtype = "int8" if integers.dtype == ir.DataType.INT8 else "uint8"
    step = float(scale.reshape(()))
    if not (math.isfinite(step) and step > 0.0):
        return None
    return Quantized(integers, step, int(zero.reshape(())) - (128 if dtype == "uint8" else 0), dtype)


def _zero_point(node: ir.Node) -> NDArray[np.generic] | None:
    """Zero where the node has none; None where it is not a constant."""
    point = node.inputs[2] if len(node.inputs) > 2 else None
    return constant(point) if point is not None else np.zeros((), dtype=np.int8)


def weights(value: ir.Value | None, axis: int) -> Weights | None:
    """Symmetric int8 weights behind DequantizeLinear, with one scale or one per index of `axis`; None elsewhere."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    values, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = _zero_point(node)
    if values is None or scale is None or zero is None or scale.dtype != np.float32:
        return None
    block = node.attributes.get_int("block_size", 0)
    if values.dtype != np.int8 or np.any(zero != 0) or block:
        return None
    integers = values.astype(np.int8)
    count, along = values.shape[axis % values.ndim], int(node.attributes.get_int("axis", 1)) % values.ndim
    if scale.size == 1:
        return Weights(integers, np.full(count, float(scale.reshape(()))))
    return Weights(integers, scale.astype(np.float64)) if along == axis % values.ndim and scale.size == count else None


def bias(value: ir.Value | None, count: int) -> Floats | None:
    """A constant of `count` elements, float32 or int32 behind DequantizeLinear; zeros for no value; None elsewhere."""
    if value is None:
        return np.zeros(count)
    array = constant(value)
    node = value.producer()
    if array is None and node is not None and is_op(node, "DequantizeLinear"):
        integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
        zero = _zero_point(node)
        if integers is None or scale is None or zero is None or np.any(zero != 0) or integers.ndim != 1:
            return None
        array = integers.astype(np.float64) * scale.astype(np.float64)
    # No axis but the last may be longer than 1.
    if array is None or array.size not in (1, count) or array.size != max(array.shape[-1:] or (1,)):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (count,))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value and nothing else does."""
    uses = tuple(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None
