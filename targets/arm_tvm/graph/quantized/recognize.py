"""Which nodes of a Q/DQ graph become which integer kernel.

    conv     DQ(x), DQ(w) → Conv | Gemm | MatMul (+ bias) (+ DQ(r)) (→ activation) (→ Q)
    pool     DQ(x) → MaxPool | AveragePool | GlobalAveragePool (→ activation) (→ Q)
    sum      DQ(x), DQ(y) → Add (→ activation) → Q;   DQ(x) → activation → Q;   DQ(x) → Q
    gate     x · g → (activation →) Q                     where x and g are float results of kernels, g of one pixel
    move     DQ(x) → Pad | Flatten | Reshape | Squeeze | Identity → Q,   DQ(x)… → Concat → Q     where Q and DQ agree

An activation is what `activations` finds: Relu, HardSwish, Sigmoid, and what is made of them and of numbers.
What matches none of them stays in float between DequantizeLinear and QuantizeLinear, as the model says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from targets.arm_tvm.graph.quantized.activations import OPERATORS
from targets.arm_tvm.graph.quantized.tail import Tail, epilogue_of, follow
from targets.arm_tvm.graph.quantized.tensors import (
    Floats,
    Quantized,
    Weights,
    bias,
    constant,
    dequantized,
    is_op,
    quantized,
    static_shape,
    weights,
)
from targets.arm_tvm.kernels.integer.specs import (
    BLOCK,
    ConvSpec,
    ElementwiseSpec,
    Epilogue,
    GateSpec,
    Image,
    JoinSpec,
    PadSpec,
    PoolSpec,
    Spec,
)

SHORT_CHANNELS = 4
"""Images of so few channels are not blocked: a row of the window is one vector or two."""


@dataclass(frozen=True)
class Match:
    """One kernel.

    Args:
        node: The operator it is made of.
        spec: The kernel; None where the integers pass unchanged.
        inputs: Tensors it reads, each with the layout it wants.
        tail: What follows the operator; its end is what the kernel makes.
        image: Layout of the result.
        weights: Of a convolution: (outputs, inputs, rows, columns).
        factors: Scale and bias per output channel, in units of the result.
        floats: Float results of other kernels that it reads, after `inputs`.
    """

    node: ir.Node
    spec: Spec | None
    inputs: tuple[tuple[Quantized, Image], ...]
    tail: Tail
    image: Image
    weights: np.ndarray[tuple[int, ...], np.dtype[np.int8]] | None = None
    factors: tuple[Floats, Floats] | None = None
    floats: tuple[ir.Value, ...] = ()

    @property
    def last(self) -> ir.Node:
        """The last node it replaces."""
        return self.tail.nodes[-1] if self.tail.nodes else self.node


def match(node: ir.Node) -> Match | None:
    """The kernel that a node and what follows it become; None if none does."""
    if node.domain not in ("", "ai.onnx"):
        return None
    finder = _FINDERS.get(node.op_type)
    return finder(node) if finder is not None else None


def match_gate(node: ir.Node, floats: Mapping[ir.Value, Image]) -> Match | None:
    """The kernel of an image whose channels are scaled, both computed by kernels before; None if the node is none.

    Args:
        node: The product.
        floats: Float results of kernels, and how they lie.
    """
    if not is_op(node, "Mul") or any(value not in floats for value in node.inputs):
        return None
    operands = [(value, floats[value]) for value in node.inputs if value is not None]
    gates = [operand for operand in operands if operand[1].height * operand[1].width == 1]
    images = [operand for operand in operands if operand not in gates]
    if len(gates) != 1 or len(images) != 1:
        return None
    (data, image), (gate, pixel) = images[0], gates[0]
    same = (image.batch, image.channels, image.layout) == (pixel.batch, pixel.channels, pixel.layout)
    tail = follow(node.outputs[0])
    if not same or image.layout != "blocked" or tail.result is None:
        return None
    epilogue, unit, _ = epilogue_of(tail)
    return Match(node, GateSpec(image, 1.0 / unit, epilogue), (), tail, image, floats=(data, gate))


def image_of(shape: tuple[int, ...] | None) -> Image | None:
    """The layout of a tensor of that shape: blocked if it has four axes, else a matrix."""
    if shape is None or not shape:
        return None
    if len(shape) == 4:
        return Image(*shape)
    return Image(1, shape[-1], 1, prod(shape[:-1]), "rows")


def _conv(node: ir.Node) -> Match | None:
    data, weight = dequantized(node.inputs[0]), weights(node.inputs[1], 0)
    source, result = image_of(static_shape(node.inputs[0])), image_of(static_shape(node.outputs[0]))
    if data is None or weight is None or source is None or result is None or weight.values.ndim != 4:
        return None
    group = node.attributes.get_int("group", 1)
    depthwise = group == source.channels == result.channels and group > 1
    added = bias(node.inputs[2] if len(node.inputs) > 2 else None, result.channels)
    pads = _pads(node, source, result)
    if added is None or pads is None or not (group == 1 or depthwise):
        return None
    tail = follow(node.outputs[0], residual=True)
    epilogue, unit, shift = epilogue_of(tail)
    spec = ConvSpec(
        source=source,
        result=result,
        kernel=(weight.values.shape[2], weight.values.shape[3]),
        strides=_pair(node, "strides"),
        dilations=_pair(node, "dilations"),
        pads=pads,
        fill=data.zero_point,
        wide=bool((weight.values == -128).any()),
        epilogue=epilogue,
        depthwise=depthwise,
    )
    spec = _short(spec, data)
    factors = _factors(weight, data, added, unit, shift)
    return Match(node, spec, _inputs((data, spec.source), tail, result), tail, result, weight.values, factors)


def _short(spec: ConvSpec, data: Quantized) -> ConvSpec:
    """The same on an unblocked image, padded when it is made, where it has few channels and comes from floats."""
    source = spec.source
    quantizer = data.value.producer()
    if source.channels > SHORT_CHANNELS or spec.depthwise or spec.dilations[1] != 1 or source.width < BLOCK:
        return spec
    if quantizer is not None and match_behind(quantizer):
        return spec
    rows, columns = spec.extent
    height, width = max(rows, source.height + spec.pads[0]), max(columns, source.width + spec.pads[1])
    return replace(spec, source=Image(source.batch, source.channels, height, width, "pixels", spec.pads))


def match_behind(quantizer: ir.Node) -> bool:
    """Whether the integers that a QuantizeLinear makes come out of a kernel."""
    pending = [quantizer.inputs[0]] if is_op(quantizer, "QuantizeLinear") else []
    seen: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None and value not in seen else None
        if value is None or node is None:
            continue
        seen.add(value)
        kernel = match(node)
        if kernel is not None and quantizer in kernel.tail.nodes:
            return True
        pending += node.inputs if is_op(node, *OPERATORS) else []
    return False


def _dense(node: ir.Node) -> Match | None:
    transposed = node.attributes.get_int("transB", 0) == 1
    weight = weights(node.inputs[1], 0 if transposed else 1)
    data = dequantized(node.inputs[0])
    source, result = image_of(static_shape(node.inputs[0])), image_of(static_shape(node.outputs[0]))
    if data is None or weight is None or weight.values.ndim != 2 or source is None or result is None:
        return None
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    turned = node.attributes.get_int("transA", 0)
    if not plain or turned or "rows" not in (source.layout, result.layout):
        return None
    added = bias(node.inputs[2] if len(node.inputs) > 2 else None, result.channels)
    if added is None or source.layout != "rows" or result.layout != "rows":
        return None
    values = weight.values if transposed else weight.values.T
    tail = follow(node.outputs[0], channels=result.channels, residual=True)
    added = added + (tail.bias if tail.bias is not None else 0.0)
    epilogue, unit, shift = epilogue_of(tail)
    wide = bool((values == -128).any())
    spec = ConvSpec(source, result, (1, 1), (1, 1), (1, 1), (0, 0), data.zero_point, wide, epilogue)
    values = np.ascontiguousarray(values)[:, :, None, None]
    factors = _factors(Weights(values, weight.scale), data, added, unit, shift)
    return Match(node, spec, _inputs((data, source), tail, result), tail, result, values, factors)


def _factors(weight: Weights, data: Quantized, added: Floats, unit: float, shift: float) -> tuple[Floats, Floats]:
    """Scale and bias of the accumulators; the bias takes back what the input's zero point adds to them."""
    scale = weight.scale * data.scale / unit
    sums = weight.values.reshape(len(weight.values), -1).sum(axis=1, dtype=np.int64)
    return scale, added / unit - scale * data.zero_point * sums + shift


def _inputs(data: tuple[Quantized, Image], tail: Tail, result: Image) -> tuple[tuple[Quantized, Image], ...]:
    return (data, (tail.residual, result)) if tail.residual is not None else (data,)


def _pool(node: ir.Node) -> Match | None:
    data = dequantized(node.inputs[0])
    source, result = image_of(static_shape(node.inputs[0])), image_of(static_shape(node.outputs[0]))
    if data is None or source is None or result is None or source.layout != "blocked":
        return None
    tail = follow(node.outputs[0])
    if any(value.name and tuple(value.uses()) for value in node.outputs[1:]):
        return None
    whole, maximum = node.op_type == "GlobalAveragePool", node.op_type == "MaxPool"
    kernel = (source.height, source.width) if whole else _pair(node, "kernel_shape")
    pads = (0, 0) if whole else _pads(node, source, result)
    if pads is None or _pair(node, "dilations") != (1, 1) or not (maximum or _sums_whole(node, source, result, kernel)):
        return None
    epilogue, unit, _ = epilogue_of(tail)
    scale = data.scale / unit / (1 if maximum else prod(kernel))
    shift = -scale * data.zero_point * (1 if maximum else prod(kernel))
    same = (
        maximum and tail.result is not None and data.agrees(tail.result) and epilogue == Epilogue(True, data.zero_point)
    )
    spec = PoolSpec(
        source,
        result,
        kernel,
        _pair(node, "strides"),
        pads,
        # Padding: the least int8 is never a maximum; in a sum the zero point stands for 0.
        -128 if maximum else data.zero_point,
        maximum,
        None if same else epilogue,
        scale,
        shift,
    )
    return Match(node, spec, ((data, source),), tail, result)


def _sums_whole(node: ir.Node, source: Image, result: Image, kernel: tuple[int, int]) -> bool:
    """Whether every mean is over all places of the window."""
    if node.op_type == "GlobalAveragePool":
        return True
    if any(node.attributes.get_ints("pads", ())) and not node.attributes.get_int("count_include_pad", 0):
        return False
    sizes = zip((source.height, source.width), (result.height, result.width), strict=True)
    pads = node.attributes.get_ints("pads", (0, 0, 0, 0))
    padded = [size + before + after for (size, _), before, after in zip(sizes, pads[:2], pads[2:], strict=True)]
    steps = _pair(node, "strides")
    reached = [
        (count - 1) * step + taps
        for count, step, taps in zip((result.height, result.width), steps, kernel, strict=True)
    ]
    return all(end <= size for end, size in zip(reached, padded, strict=True))


def _add(node: ir.Node) -> Match | None:
    left, right = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    shapes = {static_shape(value) for value in (*node.inputs, *node.outputs)}
    image = image_of(static_shape(node.outputs[0]))
    if left is None or right is None or len(shapes) != 1 or image is None:
        return None
    tail = follow(node.outputs[0])
    if tail.result is None:
        return None
    # The kernel reads the right operand as a residual of the left one.
    tail.residual = right
    return _elementwise(node, (left, right), image, tail)


def _activation(node: ir.Node) -> Match | None:
    computed = [value for value in node.inputs if value is not None and constant(value) is None]
    value = computed[0] if computed else None
    data, image = dequantized(value), image_of(static_shape(value))
    if data is None or image is None or value is None or len(computed) > 1:
        return None
    # The chain begins in front of the activation, which so is its first step.
    tail = follow(value, first=node)
    if tail.result is None or not tail.nodes or tail.nodes[0] is not node:
        return None
    return _elementwise(node, (data,), image, tail)


def _elementwise(node: ir.Node, tensors: tuple[Quantized, ...], image: Image, tail: Tail) -> Match | None:
    # The kernel has no code for a part of a vector.
    if image.elements % BLOCK:
        return None
    epilogue, unit, shift = epilogue_of(tail)
    scale = tensors[0].scale / unit
    plain = len(tensors) == 1 and tail.result is not None and tensors[0].agrees(tail.result)
    if plain and epilogue == Epilogue(True, tensors[0].zero_point):
        return Match(node, None, ((tensors[0], image),), tail, image)
    spec = ElementwiseSpec(image.elements, scale, shift - scale * tensors[0].zero_point, epilogue)
    return Match(node, spec, tuple((tensor, image) for tensor in tensors), tail, image)


def _moved(node: ir.Node) -> tuple[tuple[Quantized, ...], Tail] | None:
    """Inputs and tail of a node that only moves numbers, where all have the same scale."""
    count = len(node.inputs) if node.op_type == "Concat" else 1
    tensors = tuple(data for value in node.inputs[:count] if (data := dequantized(value)) is not None)
    tail = follow(node.outputs[0])
    if len(tensors) != count or tail.result is None or len(tail.nodes) != 1:
        return None
    return (tensors, tail) if all(tensor.agrees(tail.result) for tensor in tensors) else None


def _pad(node: ir.Node) -> Match | None:
    moved, amounts = _moved(node), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    source, result = image_of(static_shape(node.inputs[0])), image_of(static_shape(node.outputs[0]))
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    fill_value = constant(fill) if fill is not None else np.zeros(())
    if moved is None or amounts is None or source is None or result is None:
        return None
    if fill_value is None or np.any(fill_value != 0) or min(amounts.tolist()) < 0:
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    before, after = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
    whole = source.channels % BLOCK == 0 and len(before) == 4 and before[1] % BLOCK == 0
    if node.attributes.get_string("mode", "constant") != "constant" or not whole or before[0] or after[0]:
        return None
    tensors, tail = moved
    spec = PadSpec(source, result, (int(before[1]), int(before[2]), int(before[3])), tensors[0].zero_point)
    return Match(node, spec, ((tensors[0], source),), tail, result)


def _reshape(node: ir.Node) -> Match | None:
    moved = _moved(node)
    source, result = image_of(static_shape(node.inputs[0])), image_of(static_shape(node.outputs[0]))
    if moved is None or source is None or result is None:
        return None
    rows = all(image.layout == "rows" or image.height * image.width == 1 for image in (source, result))
    alike = rows and (source.channels == result.channels or not (source.channels % BLOCK or result.channels % BLOCK))
    return Match(node, None, ((moved[0][0], source),), moved[1], result) if alike else None


def _concat(node: ir.Node) -> Match | None:
    moved, images = _moved(node), [image_of(static_shape(value)) for value in node.inputs]
    result = image_of(static_shape(node.outputs[0]))
    if moved is None or result is None or result.layout != "blocked" or node.attributes.get_int("axis", 0) != 1:
        return None
    whole = [image for image in images if image is not None and image.batch == 1 and image.channels % BLOCK == 0]
    if len(whole) != len(images):
        return None
    return Match(node, JoinSpec(result.elements), tuple(zip(moved[0], whole, strict=True)), moved[1], result)


def _requantize(node: ir.Node) -> Match | None:
    """DequantizeLinear → QuantizeLinear with nothing between."""
    data, image = dequantized(node.inputs[0]), image_of(static_shape(node.inputs[0]))
    result = quantized(node)
    if data is None or image is None or result is None:
        return None
    return _elementwise(node, (data,), image, Tail(node.outputs[0], [node], result=result))


def _pair(node: ir.Node, name: str) -> tuple[int, int]:
    rows, columns = node.attributes.get_ints(name, (1, 1))
    return int(rows), int(columns)


def _pads(node: ir.Node, source: Image, result: Image) -> tuple[int, int] | None:
    """Top and left padding; None where it is not said in numbers."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic == "VALID":
        return 0, 0
    pads = tuple(node.attributes.get_ints("pads", (0, 0, 0, 0)))
    if automatic == "NOTSET":
        return (int(pads[0]), int(pads[1])) if min(pads) >= 0 else None
    kernel = constant(node.inputs[1])
    taps = node.attributes.get_ints("kernel_shape", kernel.shape[2:] if kernel is not None else ())
    if len(taps) != 2 or automatic not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    before = []
    for size, count, step, tap, distance in zip(
        (source.height, source.width),
        (result.height, result.width),
        _pair(node, "strides"),
        taps,
        _pair(node, "dilations"),
        strict=True,
    ):
        total = max((count - 1) * step + (tap - 1) * distance + 1 - size, 0)
        before.append(total // 2 if automatic == "SAME_UPPER" else -(-total // 2))
    return before[0], before[1]


_FINDERS = {
    "Conv": _conv,
    "Gemm": _dense,
    "MatMul": _dense,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    **dict.fromkeys(OPERATORS, _activation),
    "Add": lambda node: _add(node) or _activation(node),
    "Pad": _pad,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Identity": _reshape,
    "Concat": _concat,
    "QuantizeLinear": _requantize,
}
