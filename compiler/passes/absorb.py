"""Per-channel affine maps, and the layers with constant weights that can absorb them.

With W the weights, b the bias, s and t a scale and a shift per channel:

1. after a layer:   (W ∗ x + b)·s + t  =  (s·W) ∗ x + (s·b + t)     any padding; s, t per output channel
2. before a Conv:   W ∗ (x·s + t) + b  =  (W·s) ∗ x + (b + Σ W·t)   s, t per input channel; t only without padding,
                                                                    because padded zeros are not shifted

Everything is computed in float64 and rounded once to the type of the weights. Where folding is not possible, `Refused`
is raised with the reason, and the pass notes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.passes.matching import FLOATS, Refused, rank_of
from compiler.passes.values import constant_of, display_name

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that absorb an affine map behind them."""

MAX_DUPLICATE_BYTES = 1 << 20
"""A weight that other nodes read too is copied up to this size: a copy costs memory, a fusion saves one pass."""

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """x·scale + shift with one number of each per channel, both (C,)."""

    scale: Float64s
    shift: Float64s


@dataclass(frozen=True)
class Folded:
    """The weights after folding; None keeps what the layer has (a bias of None: there is none)."""

    weight: ir.TensorProtocol | None
    bias: ir.TensorProtocol | None


def constant_array(value: ir.Value | None, role: str) -> NDArray[np.generic]:
    """The array of a constant.

    Raises:
        Refused: The value is absent, or no constant of a floating-point type.
    """
    if value is None:
        raise Refused(f"the {role} is missing")
    array = constant_of(value)
    if array is None:
        raise Refused(f"the {role} '{value.name}' is not constant")
    if ir.DataType.from_numpy(array.dtype) not in FLOATS:
        raise Refused(f"the {role} '{value.name}' has type {array.dtype}, not a floating-point one")
    return array


def per_channel(value: ir.Value, *, channels: int, rank: int | None, axis: int) -> Float64s:
    """The numbers (C,) of a constant that is broadcast over every dimension but `axis`.

    Args:
        value: The constant, of any shape that broadcasts so.
        channels: C.
        rank: Rank of the tensor it is combined with; None if unknown.
        axis: The channel dimension, counted from the end (−1 is the last).

    Raises:
        Refused: The value is no such constant.
    """
    array = constant_array(value, "operand")
    if array.ndim > (rank if rank is not None else -axis if array.ndim > 1 else 1):
        raise Refused(f"'{value.name}' of shape {list(array.shape)} may add dimensions")
    shape = (1,) * max(0, -axis - array.ndim) + array.shape
    others = [dim for index, dim in enumerate(shape) if index != len(shape) + axis]
    if any(dim != 1 for dim in others) or shape[axis] not in (1, channels):
        raise Refused(f"'{value.name}' of shape {list(array.shape)} is not one number per channel")
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def affine_of(op_type: str, numbers: Float64s, *, is_constant_first: bool) -> Affine:
    """Add, Sub, Mul or Div of x and per-channel numbers as an affine map of x.

    Raises:
        Refused: The numbers are divided by x.
    """
    zero, one = np.zeros_like(numbers), np.ones_like(numbers)
    with np.errstate(divide="ignore"):
        match op_type, is_constant_first:
            case "Mul", _:
                return Affine(numbers, zero)
            case "Add", _:
                return Affine(one, numbers)
            case "Sub", False:
                return Affine(one, -numbers)
            case "Sub", True:
                return Affine(-one, numbers)
            case "Div", False:
                return Affine(1.0 / numbers, zero)
    raise Refused("a constant divided by x is no affine map")


def output_channels(layer: ir.Node) -> int:
    """How many channels a layer puts out."""
    shape = _weight_shape(layer)
    match layer.op_type:
        case "Conv":
            return shape[0]
        case "ConvTranspose":
            return shape[1] * layer.attributes.get_int("group", 1)
        case "Gemm":
            return shape[0 if layer.attributes.get_int("transB", False) else 1]
    if len(shape) != 2:
        raise Refused(f"the weight of '{display_name(layer)}' has rank {len(shape)}, not 2")
    return shape[1]


def input_channels(conv: ir.Node) -> int:
    """How many channels a Conv takes in."""
    return _weight_shape(conv)[1] * conv.attributes.get_int("group", 1)


def output_layout(layer: ir.Node) -> tuple[int | None, int]:
    """Rank of a layer's output (None if unknown), and its channel dimension counted from the end."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        rank = len(_weight_shape(layer))
        return rank, 1 - rank
    return (2 if layer.op_type == "Gemm" else rank_of(layer.inputs[0])), -1


def fold_after(layer: ir.Node, affine: Affine) -> Folded:
    """The weights of a layer that also does the affine map behind it.

    Raises:
        Refused: The layer cannot, with the reason.
    """
    weight = constant_array(layer.inputs[1], "weight")
    _require_gemm_shape(layer, affine)
    bias = _bias(layer)
    bias64 = affine.shift if bias is None else bias * affine.scale + affine.shift
    scaled = None
    if bool((affine.scale != 1.0).any()):
        _require_small_if_shared(layer)
        scaled = rounded(_scaled_outputs(layer, weight.astype(np.float64), affine.scale), weight.dtype)
    has_bias = bias is not None or bool(affine.shift.any())
    return Folded(scaled, finite(bias64, weight.dtype) if has_bias else None)


def fold_before(conv: ir.Node, affine: Affine) -> Folded:
    """The weights of a Conv that also does the affine map before it.

    Raises:
        Refused: The Conv cannot, with the reason.
    """
    weight = constant_array(conv.inputs[1], "weight")
    if bool(affine.shift.any()) and is_padded(conv):
        raise Refused("the convolution pads with zeros, which the shift before it does not reach")
    group = conv.attributes.get_int("group", 1)
    grouped = weight.astype(np.float64).reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    sums = np.einsum("gmck,gc->gm", grouped, affine.shift.reshape(group, -1)).reshape(-1)
    bias = _bias(conv)
    scaled = None
    if bool((affine.scale != 1.0).any()):
        _require_small_if_shared(conv)
        scaled = rounded((grouped * affine.scale.reshape(group, 1, -1, 1)).reshape(weight.shape), weight.dtype)
    has_bias = bias is not None or bool(affine.shift.any())
    return Folded(scaled, finite(sums + (0.0 if bias is None else bias), weight.dtype) if has_bias else None)


def is_padded(layer: ir.Node) -> bool:
    """Whether a Conv or pool may read zeros beyond its input."""
    mode = layer.attributes.get_string("auto_pad", "NOTSET")
    pads = layer.attributes.get_ints("pads", ())
    return mode in ("SAME_UPPER", "SAME_LOWER") or (mode == "NOTSET" and any(pads or ()))


def rebuild(op: Any, layer: ir.Node, x: ir.Value, folded: Folded) -> ir.Value:
    """The layer on `x` with folded weights; the old initializers stay as they are."""
    name = display_name(layer)
    weight = layer.inputs[1]
    if folded.weight is not None:
        weight = op.initializer(folded.weight, name=f"{name}.weight")
    inputs = [x, weight]
    if folded.bias is not None:
        inputs.append(op.initializer(folded.bias, name=f"{name}.bias"))
    attributes = {key: value for key, value in layer.attributes.items() if key != "beta"}
    op_type = "Gemm" if layer.op_type == "MatMul" and folded.bias is not None else layer.op_type
    output: ir.Value = op.op(op_type, *inputs, **attributes)
    return output


def rounded(array: Float64s, dtype: np.dtype[Any]) -> ir.TensorProtocol:
    """The weights in their own type.

    Raises:
        Refused: A number is not finite there, or the type's small numbers lose what it can otherwise hold.
    """
    tensor = finite(array, dtype)
    magnitudes = np.abs(array)
    if not ((magnitudes < _smallest_normal(dtype)) & (magnitudes > 0.0)).any():
        return tensor  # a normal number loses at most half of its last bit
    difference = tensor.numpy().astype(np.float64) - array
    lost = float(np.linalg.norm(difference)) / (float(np.linalg.norm(array)) or 1.0)
    if lost > float(np.ldexp(1.0, -_mantissa_bits(dtype))):
        raise Refused(f"folded weights are too small for {dtype}")
    return tensor


def finite(array: Float64s, dtype: np.dtype[Any]) -> ir.TensorProtocol:
    """The array in the type of the weights.

    Raises:
        Refused: A number is not finite there.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise Refused(f"folded weights are not finite in {dtype}")
    return ir.tensor(cast)


def _mantissa_bits(dtype: np.dtype[Any]) -> int:
    return {"float64": 52, "float32": 23, "float16": 10}.get(dtype.name, 7)


def _smallest_normal(dtype: np.dtype[Any]) -> float:
    return float(np.ldexp(1.0, {"float64": -1022, "float16": -14}.get(dtype.name, -126)))


def _require_gemm_shape(layer: ir.Node, affine: Affine) -> None:
    if layer.op_type == "MatMul" and affine.shift.any() and rank_of(layer.inputs[0]) != 2:
        raise Refused("MatMul has no bias, and Gemm needs inputs of rank 2")


def _require_small_if_shared(layer: ir.Node) -> None:
    value = layer.inputs[1]
    if value is None or value.const_value is None or all(user is layer for user, _ in value.uses()):
        return
    if value.const_value.nbytes > MAX_DUPLICATE_BYTES:
        raise Refused(f"other nodes read the weight '{value.name}' too, and a copy would be large")


def _bias(layer: ir.Node) -> Float64s | None:
    """The bias as it is added, Gemm's beta included."""
    if layer.op_type == "MatMul" or len(layer.inputs) < 3 or layer.inputs[2] is None:
        return None
    array = constant_array(layer.inputs[2], "bias").astype(np.float64)
    return array * layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else array


def _scaled_outputs(layer: ir.Node, weight: Float64s, scale: Float64s) -> Float64s:
    if layer.op_type == "Conv":
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":
        group = layer.attributes.get_int("group", 1)
        grouped = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return (grouped * scale.reshape(group, 1, -1, 1)).reshape(weight.shape)
    if layer.op_type == "Gemm" and layer.attributes.get_int("transB", False):
        return weight * scale[:, np.newaxis]
    return weight * scale


def _weight_shape(layer: ir.Node) -> tuple[int, ...]:
    shape = tuple(map(int, constant_array(layer.inputs[1], "weight").shape))
    if 0 in shape:
        raise Refused(f"the weight of '{display_name(layer)}' is empty")
    return shape
