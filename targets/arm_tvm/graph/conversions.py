"""ONNX operators converted otherwise than by TVM's importer: into Relax that our kernels and layouts recognise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from compiler.target import Array
from targets.arm_tvm.graph.reading import constant, shape_of
from targets.arm_tvm.graph.transposed import convert_transposed

Attributes = Mapping[str, Any]


def convert(operator: str, inputs: Sequence[Any], attributes: Attributes) -> Any:
    """The Relax call that a node becomes; None where TVM's importer shall convert it.

    Args:
        operator: ONNX's name of it.
        inputs: Relax expressions; None for one that is left out.
        attributes: By name.
    """
    rule = _RULES.get(operator)
    return rule(inputs, attributes) if rule is not None and _is_float(inputs) else None


def write_pads(model: ir.Model) -> None:
    """Writes `auto_pad` SAME of convolutions as explicit pads, in place: TVM's importer would pad a copy."""
    for node in model.graph.all_nodes():
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        if node.op_type == "Conv" and mode in ("SAME_UPPER", "SAME_LOWER"):
            pads = _same_pads(node, at_end=mode == "SAME_UPPER")
            if pads is not None:
                node.attributes["pads"] = ir.AttrInt64s("pads", pads)
                del node.attributes["auto_pad"]


def _same_pads(node: ir.Node, *, at_end: bool) -> list[int] | None:
    """All paddings at the beginning of the axes, then all at their end; None where a size is not known."""
    source, weights = node.inputs[:2]
    shapes = [value.shape if value is not None else None for value in (source, weights)]
    if any(shape is None or not shape.is_static() for shape in shapes):
        return None
    size, window = ([int(n) for n in shape.numpy()[2:]] for shape in shapes if shape is not None)
    strides, dilations = (node.attributes.get_ints(name, [1] * len(size)) for name in ("strides", "dilations"))
    totals = [
        max(0, (-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n)
        for n, k, stride, dilation in zip(size, window, strides, dilations, strict=True)
    ]
    less = [total // 2 for total in totals]
    more = [total - half for total, half in zip(totals, less, strict=True)]
    return [*less, *more] if at_end else [*more, *less]


def _is_float(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and str(getattr(getattr(inputs[0], "ty", None), "dtype", "")) in ("float32", "float16")


def _pad(inputs: Sequence[Any], attributes: Attributes) -> Any:
    """A padding with a constant as an operator; TVM's importer makes a kernel of it at once."""
    from tvm import relax

    operands = [value for value in inputs if value is not None]
    if attributes.get("mode", b"constant") not in (b"constant", "constant") or len(operands) not in (2, 3):
        return None
    pads, fill = constant(operands[1]), constant(operands[-1])
    if pads is None or fill is None or min(pads.tolist(), default=0) < 0:
        return None
    half = len(pads) // 2
    width = [int(size) for axis in range(half) for size in (pads[axis], pads[axis + half])]
    return relax.op.nn.pad(operands[0], width, "constant", float(fill.item()) if len(operands) == 3 else 0.0)


def _clip(inputs: Sequence[Any], attributes: Attributes) -> Any:
    """Bounds that are constants as numbers; TVM's importer makes kernels that ask at run time whether they are NaN.

    An element that is NaN becomes one of the bounds.
    """
    from tvm import relax, tirx

    low, high = (_bound(inputs, place, attributes) for place in (1, 2))
    if low is None or high is None or math.isnan(low) or math.isnan(high) or low > high:
        return None
    dtype = str(inputs[0].ty.dtype)
    value = inputs[0]
    if math.isinf(high):
        return value if math.isinf(low) else relax.op.maximum(value, relax.const(low, dtype))
    if math.isinf(low):
        return relax.op.minimum(value, relax.const(high, dtype))
    return relax.op.clip(value, tirx.const(low, dtype), tirx.const(high, dtype))


def _bound(inputs: Sequence[Any], place: int, attributes: Attributes) -> float | None:
    """Input 1 (`min`) or 2 (`max`) of Clip; infinite where there is none, None where it is no constant."""
    name, none = (("min", -math.inf), ("max", math.inf))[place - 1]
    if len(inputs) <= place or inputs[place] is None:
        return float(attributes.get(name, none))  # an attribute before opset 11
    array: Array | None = constant(inputs[place])
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _softmax(inputs: Sequence[Any], attributes: Attributes) -> Any:
    """Of an inner axis by way of the last one, for which there is a kernel."""
    from tvm import relax

    rank = len(shape_of(inputs[0]))
    axis = int(attributes.get("axis", -1)) % rank if rank else 0
    if axis == rank - 1 or not rank:
        return None
    order = [place for place in range(rank) if place != axis] + [axis]
    shares = relax.op.nn.softmax(relax.op.permute_dims(inputs[0], order), -1)
    return relax.op.permute_dims(shares, [order.index(place) for place in range(rank)])


def _instance_norm(inputs: Sequence[Any], attributes: Attributes) -> Any:
    """As one operator; TVM's importer makes seven of it."""
    from tvm import relax

    axes = list(range(2, len(shape_of(inputs[0]))))
    epsilon = float(attributes.get("epsilon", 1e-5))
    return relax.op.nn.instance_norm(*inputs, channel_axis=1, axes=axes, epsilon=epsilon)


_RULES: Mapping[str, Callable[[Sequence[Any], Attributes], Any]] = {
    "Clip": _clip,
    "ConvTranspose": convert_transposed,
    "InstanceNormalization": _instance_norm,
    "Pad": _pad,
    "Softmax": _softmax,
}
