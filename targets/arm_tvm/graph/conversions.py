"""ONNX operators converted otherwise than by TVM's importer: into Relax that our kernels and layouts recognise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.target import Array
from targets.arm_tvm.graph.reading import constant, shape_of

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


def _conv_transpose(inputs: Sequence[Any], attributes: Attributes) -> Any:
    """Windows side by side: each pixel becomes a block of pixels, by a pointwise convolution whose results are moved.

    With stride = kernel = (a, b): y[f, a·i + p, b·j + q] = Σ_c x[c, i, j] · w[c, f, p, q] + bias[f].
    """
    from tvm import relax

    parameters, shape = [parameter for parameter in inputs[1:] if parameter is not None], shape_of(inputs[0])
    constants = [array for parameter in parameters if (array := constant(parameter)) is not None]
    if len(constants) < len(parameters) or len(shape) != 4 or not _is_apart(attributes, constants[0]):
        return None
    weights, *biases = constants
    (channels, filters, rows, columns), (batch, _, height, width) = weights.shape, shape
    spread = np.ascontiguousarray(weights.transpose(1, 2, 3, 0)).reshape(-1, channels, 1, 1)
    value = relax.op.nn.conv2d(inputs[0], relax.const(spread))
    for bias in biases:
        value = relax.op.add(value, relax.const(np.repeat(bias, rows * columns).reshape(1, -1, 1, 1)))
    value = relax.op.reshape(value, (batch, filters, rows, columns, height, width))
    value = relax.op.permute_dims(value, [0, 1, 4, 2, 5, 3])
    return relax.op.reshape(value, (batch, filters, height * rows, width * columns))


def _is_apart(attributes: Attributes, weights: Array) -> bool:
    """Whether the windows of a transposed convolution lie side by side and cover exactly the result."""
    strides = [int(value) for value in attributes.get("strides", ())]
    extra = [int(value) for name in ("pads", "output_padding", "output_shape") for value in attributes.get(name, ())]
    extra += [int(value) - 1 for value in (*attributes.get("dilations", ()), attributes.get("group", 1))]
    is_plain = attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", b"NOTSET", b"VALID")
    return strides == list(weights.shape[2:]) and not any(extra) and is_plain


_RULES: Mapping[str, Callable[[Sequence[Any], Attributes], Any]] = {
    "Clip": _clip,
    "ConvTranspose": _conv_transpose,
    "Pad": _pad,
}
