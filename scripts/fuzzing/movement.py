"""Nodes that move, cut, join, index and make tensors."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import helper

from fuzzing.elementwise import axes_of
from fuzzing.sketch import Sketch

_ALL = ("float32", "int64", "int32", "bool", "float16")


def _any(sketch: Sketch, **limits: int) -> str:
    return sketch.value(kinds=(sketch.kind,) if sketch.chance(80) else _ALL, **limits)


def _axis(sketch: Sketch, rank: int) -> int:
    return sketch.integer(0 if sketch.opset < 11 else -rank, rank - 1)


def transpose(sketch: Sketch) -> None:
    """Any order of axes; the reverse one where none is given."""
    source = _any(sketch)
    perm = None if sketch.chance(15) else sketch.permutation(sketch.of(source).ndim)
    made = sketch.node("Transpose", [source], perm=perm)
    if made and sketch.chance(30):
        sketch.node("Transpose", made, perm=sketch.permutation(sketch.of(source).ndim))


def reshape(sketch: Sketch) -> None:
    """Reshape to a constant with 0 and −1 in it, to a computed shape, or Flatten."""
    source = _any(sketch, least=1)
    sizes = list(sketch.of(source).shape)
    how = sketch.choice("flatten", "merge", "split", "zeros", "dynamic", "same")
    if how == "flatten":
        sketch.node("Flatten", [source], axis=sketch.choice(None, *range(len(sizes) + 1)))
        return
    if how == "dynamic":
        shape = sketch.node("Shape", [source])
        if shape:
            front = _sliced(sketch, shape[0], 0, 1)
            target = front and sketch.node("Concat", [*front, sketch.constant([-1])], axis=0)
            if target:
                sketch.node("Reshape", [source, *target])
        return
    cut = sketch.integer(0, len(sizes))
    target = {
        "merge": [*sizes[:cut], prod(sizes[cut:])],
        "split": [*sizes[:-1], 1, sizes[-1]],
        "zeros": [0 if sketch.chance(50) else size for size in sizes],
        "same": sizes,
    }[how]
    fixed = [index for index, size in enumerate(target) if size > 0]
    if fixed and sketch.chance(50):
        target[sketch.choice(*fixed)] = -1
    sketch.node("Reshape", [source, sketch.constant(target)])


def _sliced(sketch: Sketch, source: str, start: int, end: int) -> list[str]:
    if sketch.opset < 10:
        return sketch.node("Slice", [source], starts=[start], ends=[end], axes=[0])
    return sketch.node("Slice", [source, *(sketch.constant([number]) for number in (start, end, 0))])


def squeeze(sketch: Sketch) -> None:
    """Unsqueeze, and Squeeze of all or some axes of size 1."""
    source = _any(sketch)
    sizes = sketch.of(source).shape
    if sketch.chance(50):
        axes = sketch.subset(range(len(sizes) + 1), 1)[:1]
        _with_axes(sketch, "Unsqueeze", source, axes)
        return
    ones = [axis for axis, size in enumerate(sizes) if size == 1]
    _with_axes(sketch, "Squeeze", source, sketch.subset(ones, 1) if ones and sketch.chance(70) else None)


def _with_axes(sketch: Sketch, operator: str, source: str, axes: list[int] | None) -> list[str]:
    if sketch.opset < 13:
        return sketch.node(operator, [source], axes=axes)
    return sketch.node(operator, [source, *([] if axes is None else [sketch.constant(axes)])])


def slice_(sketch: Sketch) -> None:
    """Slice with bounds outside, negative ones and negative steps; attributes before opset 10."""
    source = _any(sketch, least=1)
    sizes = sketch.of(source).shape
    axes = sketch.subset(range(len(sizes)), 1)
    starts = [sketch.integer(-sizes[axis], max(sizes[axis] - 1, 0)) for axis in axes]  # an axis may be empty
    ends = [sketch.choice(sizes[axis], 2**31 - 1, -1, sizes[axis] + 3, sizes[axis] - 1) for axis in axes]
    if sketch.opset < 10:
        made = sketch.node("Slice", [source], starts=starts, ends=ends, axes=axes)
    else:
        steps = [sketch.choice(1, 1, 2, 3) for _ in axes]
        if sketch.chance(20):
            starts, ends, steps = [-1] * len(axes), [-(2**31)] * len(axes), [-1] * len(axes)
        made = sketch.node("Slice", [source, *map(sketch.constant, (starts, ends, axes, steps))])
    if made and sketch.opset >= 10 and sketch.chance(25):
        sketch.node("Slice", [*made, *map(sketch.constant, ([0], [1], [0]))])


def concat(sketch: Sketch) -> None:
    """Concat of values that differ along the axis at most."""
    first = _any(sketch, least=1)
    shape, kind = sketch.of(first).shape, sketch.of(first).dtype
    axis = _axis(sketch, len(shape))
    rest = shape[: axis % len(shape)], shape[axis % len(shape) + 1 :]
    fitting = [
        name
        for name, made in sketch.values.items()
        if made.dtype == kind
        and made.ndim == len(shape)
        and (made.shape[: axis % len(shape)], made.shape[axis % len(shape) + 1 :]) == rest
    ]
    others = [sketch.choice(*fitting) for _ in range(sketch.integer(0, 2))]
    sketch.node("Concat", [first, *others], axis=axis)


def split(sketch: Sketch) -> None:
    """Split into equal parts or given sizes."""
    source = _any(sketch, least=1)
    axis = _axis(sketch, sketch.of(source).ndim)
    size = sketch.of(source).shape[axis]
    parts = sketch.integer(1, min(3, size))
    lengths = [size - parts + 1, *([1] * (parts - 1))]
    if sketch.opset < 13:
        sketch.node("Split", [source], parts, axis=axis, split=lengths)
    elif sketch.opset >= 18 and sketch.chance(50):
        sketch.node("Split", [source], parts, axis=axis, num_outputs=parts)
    else:
        sketch.node("Split", [source, sketch.constant(lengths)], parts, axis=axis)


def pad(sketch: Sketch) -> None:
    """Pad in each mode; a negative amount crops."""
    source = _any(sketch, least=1)
    sizes, kind = sketch.of(source).shape, sketch.of(source).dtype
    mode = sketch.choice("constant", "constant", "edge", "reflect", *(("wrap",) if sketch.opset >= 19 else ()))
    most = [min(2, size - 1) if mode == "reflect" else 2 for size in sizes]
    amounts = [sketch.integer(0, limit) if sketch.chance(60) else 0 for limit in (*most, *most)]
    if mode == "constant" and sketch.chance(15):
        amounts[0] = -1
    value = sketch.choice(None, 0, 1, 0.5)
    if sketch.opset < 11:
        sketch.node("Pad", [source], pads=amounts, mode=mode, value=None if value is None else float(value))
        return
    given = [] if value is None or mode != "constant" else [sketch.constant(np.array(value, kind))]
    sketch.node("Pad", [source, sketch.constant(amounts), *given], mode=None if sketch.chance(20) else mode)


def expand(sketch: Sketch) -> None:
    """Expand and Tile."""
    source = _any(sketch)
    sizes = sketch.of(source).shape
    if sketch.chance(50):
        wider = [sketch.integer(1, 3) if size == 1 else sketch.choice(size, 1) for size in sizes]
        lead = [sketch.integer(1, 2)] if sketch.chance(30) else []
        if sketch.opset >= 8:
            sketch.node("Expand", [source, sketch.constant([*lead, *wider])])
    elif sizes:
        sketch.node("Tile", [source, sketch.constant([sketch.integer(1, 2) for _ in sizes])])


def gather(sketch: Sketch) -> None:
    """Gather and GatherElements with negative indices, and scalars for Gather."""
    source = _any(sketch, least=1)
    axis = _axis(sketch, sketch.of(source).ndim)
    size = sketch.of(source).shape[axis]
    if not size:  # nothing can be gathered
        return
    low = -size if sketch.opset >= 11 else 0
    if sketch.opset >= 11 and sketch.chance(30):
        shape = list(sketch.of(source).shape)
        shape[axis] = sketch.integer(1, 3)
        index = sketch.feed("int64", shape, low=low, high=size)
        sketch.node("GatherElements", [source, index], axis=axis)
        return
    shape = sketch.shape(sketch.integer(0, 2))
    index = sketch.feed(sketch.choice("int64", "int32"), shape, low=low, high=size)
    sketch.node("Gather", [source, index], axis=axis)


def gather_nd(sketch: Sketch) -> None:
    """GatherND with batch dimensions."""
    source = sketch.value(least=2)
    sizes = sketch.of(source).shape
    if sketch.opset < 12 or 0 in sizes:
        return
    batch = sketch.integer(0, 1)
    depth = sketch.integer(1, len(sizes) - batch)
    random = np.random.default_rng(sketch.integer(0, 99))
    columns = [random.integers(-size, size, (*sizes[:batch], 2)) for size in sizes[batch : batch + depth]]
    index = np.stack(columns, axis=-1).astype(np.int64)
    made = sketch.constant(index) if sketch.chance(50) else sketch.input(index)
    sketch.node("GatherND", [source, made], batch_dims=batch if batch or sketch.chance(50) else None)


def scatter(sketch: Sketch) -> None:
    """ScatterElements and ScatterND; rows are distinct, since the order of equal ones is not defined."""
    source = _any(sketch, least=1)
    array = sketch.of(source)
    if sketch.opset < 16:
        return
    how = sketch.choice(None, "add", "mul") if array.dtype.kind == "f" else None
    if sketch.chance(50):
        axis = _axis(sketch, array.ndim)
        count = sketch.integer(1, array.shape[axis])
        shape = [count if at == axis % array.ndim else size for at, size in enumerate(array.shape)]
        order = np.random.default_rng(sketch.integer(0, 99)).permutation(array.shape[axis])[:count]
        places = np.broadcast_to(
            order.reshape([-1 if at == axis % array.ndim else 1 for at in range(array.ndim)]), shape
        )
        updates = sketch.input(sketch.array(array.dtype.name, shape))
        index = sketch.constant(np.ascontiguousarray(places).astype(np.int64))
        sketch.node("ScatterElements", [source, index, updates], axis=axis, reduction=how)
    else:
        count = sketch.integer(1, array.shape[0])
        order = np.random.default_rng(sketch.integer(0, 99)).permutation(array.shape[0])[:count]
        updates = sketch.input(sketch.array(array.dtype.name, (count, *array.shape[1:])))
        index = sketch.constant(order.reshape(-1, 1).astype(np.int64))
        sketch.node("ScatterND", [source, index, updates], reduction=how)


def top_k(sketch: Sketch) -> None:
    """TopK along an axis; k is an attribute before opset 10."""
    source = sketch.value(least=1)
    axis = _axis(sketch, sketch.of(source).ndim)
    count = sketch.integer(1, sketch.of(source).shape[axis])
    if sketch.opset < 10:
        sketch.node("TopK", [source], 2, k=count, axis=axis)
        return
    flags = {"largest": sketch.choice(None, 0, 1), "sorted": sketch.choice(None, 1)} if sketch.opset >= 11 else {}
    sketch.node("TopK", [source, sketch.constant([count])], 2, axis=axis, **flags)


def shape_of(sketch: Sketch) -> None:
    """Shape and Size, and arithmetic with them."""
    source = _any(sketch)
    cut = {}
    if sketch.opset >= 15 and sketch.chance(40):
        cut = {"start": sketch.choice(None, 0, 1, -1), "end": sketch.choice(None, 2, -1)}
    made = sketch.node("Shape", [source], **cut) if sketch.chance(70) else sketch.node("Size", [source])
    if made and sketch.chance(50):
        sketch.node("Cast", made, to=helper.np_dtype_to_tensor_dtype(np.dtype(sketch.kind)))


def make(sketch: Sketch) -> None:
    """ConstantOfShape, Range, OneHot, EyeLike, Trilu, Compress, NonZero, Constant."""
    operator = sketch.choice(
        "Constant", "ConstantOfShape", "Range", "OneHot", "EyeLike", "Trilu", "NonZero", "Compress"
    )
    since = {"Range": 11, "Trilu": 14, "ConstantOfShape": 9, "OneHot": 9, "EyeLike": 9, "NonZero": 9, "Compress": 9}
    if sketch.opset < since.get(operator, 7):
        return
    if operator == "Constant":
        array = sketch.array(sketch.kind, sketch.shape(sketch.integer(0, 3)))
        sketch.node(
            operator, [], value=helper.make_tensor("", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array)
        )
    elif operator == "ConstantOfShape":
        filled = np.array([sketch.choice(0, 1, 0.5)], sketch.kind)
        tensor = helper.make_tensor("", helper.np_dtype_to_tensor_dtype(filled.dtype), [1], filled)
        sketch.node(operator, [sketch.constant(list(sketch.shape(2)))], value=tensor if sketch.chance(80) else None)
    elif operator == "Range":
        numbers = (sketch.integer(-3, 3), sketch.integer(4, 9), sketch.integer(1, 3))
        kind = sketch.choice("int64", "int32", "float32")
        sketch.node(operator, [sketch.constant(np.array(number, kind)) for number in numbers])
    elif operator == "OneHot":
        index = sketch.feed("int64", sketch.shape(sketch.integer(1, 2)), low=-3, high=4)
        values = sketch.constant(np.array([0, 1], sketch.kind))
        sketch.node(operator, [index, sketch.constant(np.array(4)), values], axis=sketch.choice(None, -1, 0, 1))
    elif operator == "EyeLike":
        sketch.node(operator, [sketch.value(rank=2)], k=sketch.choice(None, 0, 1, -1))
    elif operator == "Trilu":
        k = [] if sketch.chance(40) else [sketch.constant(np.array(sketch.integer(-2, 2)))]
        sketch.node(operator, [_any(sketch, least=2), *k], upper=sketch.choice(None, 0, 1))
    elif operator == "NonZero":
        sketch.node(operator, [_any(sketch, least=1)])
    else:
        source = _any(sketch, least=1)
        axis = sketch.integer(0, sketch.of(source).ndim - 1)
        mask = sketch.constant(np.arange(sketch.of(source).shape[axis]) % 2 == 0)
        sketch.node(operator, [source, mask], axis=axis)


def blocks(sketch: Sketch) -> None:
    """DepthToSpace and SpaceToDepth."""
    if sketch.chance(50):
        source = sketch.feed(sketch.kind, (1, 4 * sketch.integer(1, 2), sketch.integer(1, 3), sketch.integer(1, 3)))
        mode = sketch.choice(None, "DCR", "CRD") if sketch.opset >= 11 else None
        sketch.node("DepthToSpace", [source], blocksize=2, mode=mode)
    else:
        source = sketch.feed(sketch.kind, (1, sketch.integer(1, 3), 2 * sketch.integer(1, 2), 2 * sketch.integer(1, 2)))
        sketch.node("SpaceToDepth", [source], blocksize=2)


def resize(sketch: Sketch) -> None:
    """Resize by scales or to sizes, in every mode; Upsample before opset 10."""
    source = sketch.value(rank=sketch.choice(4, 4, 3))
    sizes = sketch.of(source).shape
    factors = [1.0, 1.0, *(sketch.choice(2.0, 1.0, 0.5, 1.5, 3.0) for _ in sizes[2:])]
    scales = sketch.constant(np.array(factors, np.float32))
    mode = sketch.choice("nearest", "linear", *(("cubic",) if sketch.opset >= 11 else ()))
    if sketch.opset < 9:
        sketch.node("Upsample", [source], mode=mode, scales=factors)
    elif sketch.opset == 9:
        sketch.node("Upsample", [source, scales], mode=mode)
    elif sketch.opset == 10:
        sketch.node("Resize", [source, scales], mode=mode)
    else:
        place = sketch.choice(None, "half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
        near = sketch.choice(None, "floor", "ceil", "round_prefer_ceil") if mode == "nearest" else None
        roi = "" if sketch.opset >= 13 else sketch.constant(np.zeros(0, np.float32))
        target = [*sizes[:2], *(sketch.integer(1, 6) for _ in sizes[2:])]
        if sketch.chance(50):
            empty = "" if sketch.opset >= 13 else sketch.constant(np.zeros(0, np.float32))
            inputs = [source, roi, empty, sketch.constant(target)]
        else:
            inputs = [source, roi, scales]
        sketch.node("Resize", inputs, mode=mode, coordinate_transformation_mode=place, nearest_mode=near)


def sequence(sketch: Sketch) -> None:
    """ReverseSequence along time."""
    if sketch.opset < 10:
        return
    source = sketch.value(least=2)
    first, second = sketch.of(source).shape[:2]
    batch = sketch.integer(0, 1)
    count, length = (first, second) if batch == 0 else (second, first)
    lengths = sketch.constant(np.random.default_rng(sketch.integer(0, 99)).integers(1, length + 1, count))
    sketch.node("ReverseSequence", [source, lengths], batch_axis=batch, time_axis=1 - batch)


def einsum(sketch: Sketch) -> None:
    """Einsum of two operands."""
    if sketch.opset < 12:
        return
    equation, left, right = sketch.choice(
        ("ij,jk->ik", (2, 3), (3, 4)),
        ("bij,bjk->bik", (2, 2, 3), (2, 3, 4)),
        ("bhid,bhjd->bhij", (1, 2, 3, 4), (1, 2, 5, 4)),
        ("ij,ij->i", (2, 3), (2, 3)),
        ("i,j->ij", (3,), (4,)),
        ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 4)),
    )
    sketch.node("Einsum", [sketch.feed(sketch.kind, left), sketch.feed(sketch.kind, right)], equation=equation)


def unequal_axes(sketch: Sketch) -> None:
    """Two reductions of the same value over different axes, which must stay apart."""
    source = sketch.value(least=2)
    for _ in range(2):
        axes = axes_of(sketch, sketch.of(source).ndim)
        if sketch.opset < 18:
            sketch.node("ReduceMean", [source], axes=axes)
        else:
            sketch.node("ReduceMean", [source, sketch.constant(axes)])


STEPS = (
    transpose,
    reshape,
    reshape,
    squeeze,
    slice_,
    concat,
    split,
    pad,
    expand,
    gather,
    gather_nd,
    scatter,
    top_k,
    shape_of,
    make,
    blocks,
    resize,
    sequence,
    einsum,
    unequal_axes,
)
