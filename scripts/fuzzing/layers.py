"""Nodes with weights: convolutions, products, pools, normalizations, recurrent layers, attention, quantizers."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fuzzing.sketch import Sketch


def _image(sketch: Sketch, dims: int) -> str:
    """A value with batch, channels and so many spatial dimensions."""
    if sketch.chance(60):
        return sketch.value(rank=dims + 2)
    sizes = (sketch.integer(1, 2), sketch.integer(1, 4), *(sketch.integer(2, 7) for _ in range(dims)))
    return sketch.feed(sketch.kind, sizes)


def _windows(sketch: Sketch, dims: int, *, dilations: bool = True) -> dict[str, Any]:
    """Kernel, strides, dilations and padding; pads may be uneven, or automatic."""
    window: dict[str, Any] = {"kernel_shape": [sketch.integer(1, 3) for _ in range(dims)]}
    if sketch.chance(40):
        window["strides"] = [sketch.integer(1, 3) for _ in range(dims)]
    if dilations and sketch.chance(25):
        window["dilations"] = [sketch.integer(1, 2) for _ in range(dims)]
    automatic = sketch.choice(None, None, "SAME_UPPER", "SAME_LOWER", "VALID")
    if automatic:
        window["auto_pad"] = automatic
    elif sketch.chance(60):
        window["pads"] = [sketch.integer(0, size - 1) for size in window["kernel_shape"] * 2]
    return window


def conv(sketch: Sketch) -> None:
    """Conv in one to three dimensions, grouped or depthwise; BatchNormalization and an activation may follow."""
    dims = sketch.choice(2, 2, 2, 1, 3)
    source = _image(sketch, dims)
    channels = sketch.of(source).shape[1]
    groups = sketch.choice(1, 1, channels, 2 if channels % 2 == 0 else 1)
    out = groups * sketch.integer(1, 3)
    window = _windows(sketch, dims)
    weight = sketch.weight((out, channels // groups, *window["kernel_shape"]))
    bias = [sketch.weight((out,))] if sketch.chance(60) else []
    made = sketch.node(
        "Conv", [source, weight, *bias], group=groups if groups > 1 or sketch.chance(30) else None, **window
    )
    if made and sketch.chance(45):
        made = normalize_batch(sketch, made[0])
    if made and sketch.chance(45):
        activation(sketch, made[0])


def activation(sketch: Sketch, source: str) -> None:
    """What stands behind layers: Relu, Clip to 6, Sigmoid, Mul with Sigmoid, Add of a constant per channel."""
    how = sketch.choice("Relu", "Sigmoid", "silu", "hardswish", "affine", "residual")
    if how in ("Relu", "Sigmoid"):
        sketch.node(how, [source])
    elif how == "silu":
        gate = sketch.node("Sigmoid", [source])
        if gate:
            sketch.node("Mul", [source, *gate] if sketch.chance(50) else [*gate, source])
    elif how == "hardswish":
        hard_swish(sketch, source)
    elif how == "residual":
        sketch.node("Add", [source, source])
    else:
        array = sketch.of(source)
        if array.ndim > 1:
            shape = (array.shape[1], *([1] * (array.ndim - 2)))
            made = sketch.node("Mul", [source, sketch.weight(shape)])
            if made:
                sketch.node("Add", [*made, sketch.weight(shape)])


def hard_swish(sketch: Sketch, source: str) -> None:
    """x · clip(x + 3, 0, 6) / 6, as exporters spell it."""
    kind = sketch.kind
    number = {value: sketch.constant(np.array(value, kind)) for value in (3, 0, 6)}
    moved = sketch.node("Add", [source, number[3]])
    if not moved:
        return
    if sketch.opset < 11:
        clipped = sketch.node("Clip", moved, min=0.0, max=6.0)
    else:
        clipped = sketch.node("Clip", [*moved, number[0], number[6]])
    product = clipped and sketch.node("Mul", [source, *clipped])
    if product:
        sketch.node("Div", [*product, number[6]])


def normalize_batch(sketch: Sketch, source: str) -> list[str]:
    """BatchNormalization at inference."""
    channels = sketch.of(source).shape[1]
    kind = sketch.kind
    parts = [sketch.weight((channels,)) for _ in range(3)]
    epsilon = sketch.choice(None, 1e-3, 0.1)
    return sketch.node("BatchNormalization", [source, *parts, sketch.positive((channels,), kind=kind)], epsilon=epsilon)


def batch_normalization(sketch: Sketch) -> None:
    """BatchNormalization of any value of rank 2 to 5."""
    normalize_batch(sketch, sketch.value(least=2))


def conv_transpose(sketch: Sketch) -> None:
    """ConvTranspose with strides, groups and output padding."""
    dims = sketch.choice(2, 2, 1)
    source = _image(sketch, dims)
    channels = sketch.of(source).shape[1]
    groups = sketch.choice(1, 1, channels)
    kernel = [sketch.integer(1, 3) for _ in range(dims)]
    strides = [sketch.integer(1, 2) for _ in range(dims)]
    pads = [sketch.integer(0, (size - 1) // 2) for size in kernel * 2] if sketch.chance(50) else None
    extra = [sketch.integer(0, stride - 1) for stride in strides] if sketch.chance(30) else None
    weight = sketch.weight((channels, sketch.integer(1, 3), *kernel))
    bias = [sketch.weight((groups * sketch.of(weight).shape[1],))] if sketch.chance(50) else []
    made = sketch.node(
        "ConvTranspose",
        [source, weight, *bias],
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        output_padding=extra,
        group=groups,
        dilations=[sketch.integer(1, 2)] * dims if sketch.chance(20) else None,
    )
    if made and sketch.chance(40):
        normalize_batch(sketch, made[0])


def pool(sketch: Sketch) -> None:
    """MaxPool, AveragePool and LpPool with every attribute."""
    dims = sketch.choice(2, 2, 1, 3)
    operator = sketch.choice("MaxPool", "AveragePool", "AveragePool", "LpPool")
    window = _windows(sketch, dims, dilations=(operator == "MaxPool" and sketch.opset >= 10) or sketch.opset >= 19)
    if sketch.opset >= (18 if operator == "LpPool" else 10) and "auto_pad" not in window:
        window["ceil_mode"] = sketch.choice(None, 0, 1)
    if operator == "AveragePool":
        window["count_include_pad"] = sketch.choice(None, 0, 1)
    elif operator == "LpPool":
        window["p"] = sketch.choice(None, 1, 2, 3)
    sketch.node(operator, [_image(sketch, dims)], **window)


def global_pool(sketch: Sketch) -> None:
    """Pools over the whole image."""
    operator = sketch.choice("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    sketch.node(operator, [_image(sketch, sketch.choice(2, 2, 1, 3))])


def matmul(sketch: Sketch) -> None:
    """MatMul of a value with weights or with a value; Add of a bias may follow."""
    source = sketch.value(least=1)
    array = sketch.of(source)
    width = sketch.integer(1, 5)
    lead = array.shape[:-2] if sketch.chance(20) else ()
    shape = (*lead, array.shape[-1], width)
    other = sketch.weight(shape) if sketch.chance(75) else sketch.input(sketch.array(sketch.kind, shape))
    made = sketch.node("MatMul", [source, other])
    if made and sketch.chance(60):
        bias = sketch.weight((width,)) if sketch.chance(80) else sketch.weight((1,))
        made = sketch.node("Add", [*made, bias] if sketch.chance(70) else [bias, *made])
    if made and sketch.chance(30):
        activation(sketch, made[0])


def gemm(sketch: Sketch) -> None:
    """Gemm with transposes, factors, and biases of every shape."""
    source = sketch.value(rank=2)
    rows, depth = sketch.of(source).shape
    turned, other = sketch.choice(None, 0, 1), sketch.choice(None, 0, 1)
    if turned:
        rows, depth = depth, rows
    width = sketch.integer(1, 4)
    weight = sketch.weight((width, depth) if other else (depth, width))
    shape = sketch.choice((width,), (1, width), (rows, width), (rows, 1), (1,), ())
    bias = [sketch.weight(shape)] if sketch.opset < 11 or sketch.chance(75) else []
    factors = {name: sketch.choice(None, 1.0, 0.5, -2.0, 0.0) for name in ("alpha", "beta")}
    made = sketch.node("Gemm", [source, weight, *bias], transA=turned, transB=other, **factors)
    if made and sketch.chance(30):
        normalize_batch(sketch, made[0])


def normalization(sketch: Sketch) -> None:
    """Instance, layer, group, RMS and mean-variance normalization, and LRN."""
    names = {
        "LayerNormalization": 17,
        "InstanceNormalization": 7,
        "LRN": 7,
        "MeanVarianceNormalization": 9,
        "GroupNormalization": 21,
        "RMSNormalization": 23,
    }
    operator = sketch.choice(*(name for name, since in names.items() if since <= sketch.opset))
    if operator in ("LayerNormalization", "RMSNormalization"):
        source = sketch.value(least=1)
        sizes = sketch.of(source).shape
        axis = sketch.integer(-len(sizes), -1)
        scale = sketch.weight(sizes[axis:])
        bias = [sketch.weight(sizes[axis:])] if operator[0] == "L" and sketch.chance(60) else []
        sketch.node(operator, [source, scale, *bias], axis=axis, epsilon=sketch.choice(None, 1e-3))
        return
    source = _image(sketch, 2)
    channels = sketch.of(source).shape[1]
    if operator == "LRN":
        sketch.node(operator, [source], size=sketch.choice(3, 1, 5, 2), bias=sketch.choice(None, 2.0), alpha=0.01)
    elif operator == "MeanVarianceNormalization":
        sketch.node(operator, [source], axes=sketch.choice(None, [0, 2, 3], [2, 3], [1]))
    else:
        parts = [sketch.weight((channels,)) for _ in range(2)]
        groups = {"num_groups": sketch.choice(channels, 1)} if operator[0] == "G" else {}
        sketch.node(operator, [source, *parts], epsilon=sketch.choice(None, 1e-3), **groups)


def recurrent(sketch: Sketch) -> None:
    """LSTM, GRU and RNN in every direction, with lengths, initial states and all outputs."""
    operator, gates = sketch.choice(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    steps, batch, width, hidden = (sketch.integer(1, 4) for _ in range(4))
    direction = sketch.choice(None, "forward", "reverse", "bidirectional")
    count = 2 if direction == "bidirectional" else 1
    inputs = [
        sketch.input(sketch.array(sketch.kind, (steps, batch, width))),
        sketch.weight((count, gates * hidden, width)),
        sketch.weight((count, gates * hidden, hidden)),
        sketch.weight((count, 2 * gates * hidden)) if sketch.chance(70) else "",
        sketch.constant(np.array([1 + at % steps for at in range(batch)], np.int32)) if sketch.chance(30) else "",
    ]
    for _ in range(2 if operator == "LSTM" else 1):
        state = (count, batch, hidden)
        inputs.append(sketch.input(sketch.array(sketch.kind, state)) if sketch.chance(50) else "")
    if operator == "LSTM" and sketch.chance(20):
        inputs.append(sketch.weight((count, 3 * hidden)))
    while not inputs[-1]:
        inputs.pop()
    extra: dict[str, Any] = {"clip": sketch.choice(None, None, 0.5)}
    if operator == "GRU":
        extra["linear_before_reset"] = sketch.choice(None, 0, 1)
    if sketch.chance(25):
        extra["activations"] = {
            "LSTM": ["Sigmoid", "Tanh", "Tanh"],
            "GRU": ["Sigmoid", "Tanh"],
            "RNN": [sketch.choice("Relu", "Tanh", "Sigmoid")],
        }[operator] * count
    outputs = sketch.integer(1, 3 if operator == "LSTM" else 2)
    sketch.node(operator, inputs, outputs, hidden_size=hidden, direction=direction, **extra)


def attention(sketch: Sketch) -> None:
    """Attention as one operator, and RotaryEmbedding."""
    if sketch.opset < 23:
        spelled_attention(sketch)
        return
    heads, length, width = sketch.integer(1, 2), sketch.integer(1, 4), 2 * sketch.integer(1, 2)
    if sketch.chance(25):
        source = sketch.input(sketch.array(sketch.kind, (1, heads, length, width)))
        tables = [sketch.weight((1, length, width // 2)) for _ in range(2)]
        sketch.node("RotaryEmbedding", [source, *tables], interleaved=sketch.choice(None, 0, 1))
        return
    other = sketch.integer(1, 4)
    shapes = [(2, heads, length, width), (2, heads, other, width), (2, heads, other, width)]
    inputs = [sketch.input(sketch.array(sketch.kind, shape)) for shape in shapes]
    if sketch.chance(40):
        mask = (length, other)
        inputs.append(sketch.weight(mask) if sketch.chance(60) else sketch.constant(np.tri(*mask).astype(bool)))
    causal = sketch.choice(None, 0, 1)
    sketch.node("Attention", inputs, scale=sketch.choice(None, 0.5), is_causal=causal, softcap=sketch.choice(None, 2.0))


def spelled_attention(sketch: Sketch) -> None:
    """softmax(q · kᵀ · scale + mask) · v."""
    heads, length, width = sketch.integer(1, 2), sketch.integer(1, 4), sketch.integer(1, 4)
    shape = (2, heads, length, width)
    query, key, value = (sketch.input(sketch.array(sketch.kind, shape)) for _ in range(3))
    turned = sketch.node("Transpose", [key], perm=[0, 1, 3, 2])
    scores = turned and sketch.node("MatMul", [query, *turned])
    if scores and sketch.chance(80):
        factor = sketch.constant(np.array(sketch.choice(0.5, 2.0), sketch.kind))
        scores = sketch.node(sketch.choice("Mul", "Div"), [*scores, factor])
    if scores and sketch.chance(40):
        scores = sketch.node("Add", [*scores, sketch.weight((length, length))])
    weights = scores and sketch.node("Softmax", scores, axis=-1 if sketch.opset >= 11 else 3)
    if weights:
        sketch.node("MatMul", [*weights, value])


def spelled_normalization(sketch: Sketch) -> None:
    """Layer normalization as exporters spell it, over the last axis or over channels; or RMS normalization."""
    source = sketch.value(least=2)
    array = sketch.of(source)
    axis = sketch.choice(-1, -1, 1)
    mean = _mean(sketch, source, axis)
    centred = mean and sketch.node("Sub", [source, *mean])
    if not centred:
        return
    squares = (
        sketch.node("Mul", [*centred, *centred])
        if sketch.chance(40)
        else sketch.node("Pow", [*centred, sketch.constant(np.array(2, sketch.kind))])
    )
    variance = squares and _mean(sketch, squares[0], axis)
    moved = variance and sketch.node("Add", [*variance, sketch.constant(np.array(1e-3, sketch.kind))])
    root = moved and sketch.node("Sqrt", moved)
    result = root and sketch.node("Div", [*centred, *root])
    if result and sketch.chance(70):
        shape = (array.shape[-1],) if axis == -1 else (array.shape[1], *([1] * (array.ndim - 2)))
        scaled = sketch.node("Mul", [*result, sketch.weight(shape)])
        if scaled and sketch.chance(70):
            sketch.node("Add", [*scaled, sketch.weight(shape)])


def _mean(sketch: Sketch, source: str, axis: int) -> list[str]:
    given = axis if sketch.opset >= 11 else axis % sketch.of(source).ndim
    if sketch.opset < 18:
        return sketch.node("ReduceMean", [source], axes=[given])
    return sketch.node("ReduceMean", [source, sketch.constant([given])])


def spelled_gelu(sketch: Sketch) -> None:
    """Gelu by Erf or Tanh; the constants may be those of Gelu or not."""
    source = sketch.value()
    number = {
        value: sketch.constant(np.array(value, sketch.kind))
        for value in (0.5, 1.0, sketch.choice(1.4142135, 1.5), 0.044715, 0.7978846)
    }
    half, one, root, cubic, factor = number.values()
    if sketch.opset >= 9 and sketch.chance(60):
        divided = sketch.node("Div", [source, root])
        inner = divided and sketch.node("Erf", divided)
    else:
        cube = sketch.node("Pow", [source, sketch.constant(np.array(3, sketch.kind))])
        scaled = cube and sketch.node("Mul", [*cube, cubic])
        total = scaled and sketch.node("Add", [source, *scaled])
        times = total and sketch.node("Mul", [*total, factor])
        inner = times and sketch.node("Tanh", times)
    moved = inner and sketch.node("Add", [*inner, one])
    product = moved and sketch.node("Mul", [source, *moved])
    if product:
        sketch.node("Mul", [*product, half])


def quantizers(sketch: Sketch) -> None:
    """QuantizeLinear and DequantizeLinear, per tensor or per axis; DynamicQuantizeLinear; products of integers."""
    if sketch.kind != "float32" or sketch.opset < 11:
        return
    how = sketch.choice("pair", "pair", "axis", "dynamic", "MatMulInteger", "QLinearMatMul")
    kind = sketch.choice("uint8", "int8")
    if how == "dynamic":
        made = sketch.node("DynamicQuantizeLinear", [sketch.value()], 3)
        if made:
            sketch.node("DequantizeLinear", made)
    elif how in ("MatMulInteger", "QLinearMatMul"):
        _integer_product(sketch, how, kind)
    else:
        source = sketch.value(least=2)
        size = sketch.of(source).shape[1]
        axis = 1 if how == "axis" and sketch.opset >= 13 else None
        shape = () if axis is None else (size,)
        scale = sketch.positive(shape, kind="float32")
        zero = sketch.constant(sketch.array(kind, shape))
        made = sketch.node("QuantizeLinear", [source, scale, zero], axis=axis)
        if made:
            sketch.node("DequantizeLinear", [*made, scale, zero], axis=axis)


def _integer_product(sketch: Sketch, operator: str, kind: str) -> None:
    rows, depth, width = (sketch.integer(1, 4) for _ in range(3))
    left = sketch.input(sketch.array(kind, (rows, depth)))
    right = sketch.constant(sketch.array("int8", (depth, width)))
    zeros = [sketch.constant(np.array(sketch.integer(0, 3), kind)), sketch.constant(np.array(1, "int8"))]
    if operator == "MatMulInteger":
        made = sketch.node(operator, [left, right, *zeros])
        if made:
            sketch.node("Cast", made, to=1)
        return
    scales = [sketch.constant(np.array(value, np.float32)) for value in (0.1, 0.2, 0.3)]
    last = sketch.constant(np.array(2, kind))
    sketch.node(operator, [left, scales[0], zeros[0], right, scales[1], zeros[1], scales[2], last])


def excitation(sketch: Sketch) -> None:
    """Squeeze and excitation: a pool, two products, a gate."""
    source = _image(sketch, 2)
    channels = sketch.of(source).shape[1]
    pooled = sketch.node("GlobalAveragePool", [source])
    first = pooled and sketch.node("Conv", [*pooled, sketch.weight((2, channels, 1, 1))])
    active = first and sketch.node("Relu", first)
    second = active and sketch.node("Conv", [*active, sketch.weight((channels, 2, 1, 1))])
    gate = second and sketch.node("Sigmoid", second)
    if gate:
        sketch.node("Mul", [source, *gate])


def classifier(sketch: Sketch) -> None:
    """Flatten, then a product with a bias."""
    source = sketch.value(least=2)
    width = prod(sketch.of(source).shape[1:])
    flat = sketch.node("Flatten", [source])
    if flat:
        sketch.node("Gemm", [*flat, sketch.weight((width, 3)), sketch.weight((3,))])


STEPS = (
    conv,
    conv,
    conv,
    batch_normalization,
    conv_transpose,
    pool,
    pool,
    global_pool,
    matmul,
    matmul,
    gemm,
    normalization,
    recurrent,
    attention,
    spelled_normalization,
    spelled_gelu,
    quantizers,
    excitation,
    classifier,
)
