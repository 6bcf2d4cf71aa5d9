"""Operators that TVM computes in the packed layout (N, C/L, H, W, L): each as the call on packed values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from targets.arm_tvm.graph.layouts import PackedValues
from targets.arm_tvm.graph.reading import constant, number, operator_name, shape_of

# f(0) = 0: zeros that fill up the last block stay zeros. Other operators need channels that fill whole blocks.
_KEEP_ZERO_NAMES = "nn.relu nn.leakyrelu nn.silu nn.gelu tanh abs negative sqrt"
_KEEP_ZERO = frozenset(f"relax.{name}" for name in _KEEP_ZERO_NAMES.split())
_UNARY = _KEEP_ZERO | {f"relax.{name}" for name in ("sigmoid", "clip", "exp", "erf", "nn.gelu_tanh")}
_BINARY = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "maximum", "minimum"))
_POOLS = frozenset(["relax.nn.max_pool2d", "relax.nn.avg_pool2d"])


def packed_operator(binding: Any, values: PackedValues) -> Any:
    """The call on packed values that a binding's operator becomes; None where it cannot be computed packed."""
    from tvm import relax

    if isinstance(binding.value, relax.TupleGetItem):
        parts = values.packed.get(binding.value.tuple_value)
        return None if parts is None else relax.TupleGetItem(parts, binding.value.index)
    name = operator_name(binding.value)
    if name == "relax.split":
        return _split(binding, values)
    rule = _RULES.get(name)
    first = binding.value.args[0] if rule else None
    if rule is None or len(shape_of(binding.var)) != 4 or str(binding.var.ty.dtype) not in ("float32", "float16"):
        return None
    operands = [value for argument in binding.value.args for value in (_fields(argument) or [argument])]
    if not any(operand in values.packed for operand in operands if _is_var(operand)):
        return None
    return rule(binding, first, values)


def reshape_of_packed(binding: Any, values: PackedValues) -> Any:
    """A reshape of (N, C, 1, 1) to (N, C) that leaves the packed elements where they are."""
    from tvm import relax

    if operator_name(binding.value) != "relax.reshape":
        return None
    source = binding.value.args[0]
    shape = shape_of(source)
    if source not in values.packed or len(shape) != 4 or shape[2:] != (1, 1) or shape[1] % values.lanes(source):
        return None
    return relax.op.reshape(values.packed[source], shape_of(binding.var))


def _unary(binding: Any, source: Any, values: PackedValues) -> Any:
    from tvm import relax

    whole = shape_of(source)[1] % values.lanes(source) == 0
    if operator_name(binding.value) not in _KEEP_ZERO and not whole:
        return None
    call = binding.value
    return relax.Call(call.op, [values.packed[source], *call.args[1:]], call.attrs, call.ty_args)


def _binary(binding: Any, _: Any, values: PackedValues) -> Any:
    from tvm import relax

    operands = [_operand(argument, values) for argument in binding.value.args]
    if any(operand is None for operand in operands) or shape_of(binding.var)[1] % values.lanes(binding.var):
        return None
    return relax.Call(binding.value.op, operands, binding.value.attrs, binding.value.ty_args)


def _operand(argument: Any, values: PackedValues) -> Any:
    from tvm import relax

    shape, array = shape_of(argument), constant(argument)
    if array is not None:
        if array.size == 1:
            return relax.const(array.reshape(()))
        lanes = values.machine.lanes(str(array.dtype)) if str(array.dtype) in ("float32", "float16") else 0
        channels = array.size
        if not lanes or array.ndim < 3 or array.shape[-3:] != (channels, 1, 1) or channels % lanes:
            return None
        return relax.const(array.reshape(1, channels // lanes, 1, 1, lanes))
    if not _is_var(argument) or len(shape) != 4 or shape[1] % values.lanes(argument):
        return None
    return values.packed.get(argument)


def _pool(binding: Any, source: Any, values: PackedValues) -> Any:
    from tvm import relax

    attrs, layout = binding.value.attrs, f"NCHW{values.lanes(source)}c"
    operator = relax.op.nn.max_pool2d if operator_name(binding.value).endswith("max_pool2d") else relax.op.nn.avg_pool2d
    return operator(
        values.packed[source],
        pool_size=[int(size) for size in attrs.pool_size],
        strides=[int(size) for size in attrs.strides],
        padding=[int(size) for size in attrs.padding],
        dilation=[int(size) for size in attrs.dilation],
        ceil_mode=bool(attrs.ceil_mode),
        # Without padding it makes no difference, and counting all places needs no count per window.
        count_include_pad=bool(attrs.count_include_pad) or not (any(attrs.padding) or attrs.ceil_mode),
        layout=layout,
    )


def _mean(binding: Any, source: Any, values: PackedValues) -> Any:
    from tvm import relax

    axes = sorted(int(axis) % 4 for axis in binding.value.attrs.axis or ())
    if axes != [2, 3] or not binding.value.attrs.keepdims:
        return None
    return relax.op.mean(values.packed[source], axis=[2, 3], keepdims=True)


def _pad(binding: Any, source: Any, values: PackedValues) -> Any:
    from tvm import relax

    lanes, attrs = values.lanes(source), binding.value.attrs
    width = [int(size) for size in attrs.pad_width]
    if shape_of(source)[1] % lanes or any(size % lanes or size < 0 for size in width[2:4]):
        return None
    widths = [*width[:2], *(size // lanes for size in width[2:4]), *width[4:], 0, 0]
    return relax.op.nn.pad(values.packed[source], widths, attrs.pad_mode, *_pad_value(binding.value))


def _pad_value(call: Any) -> list[Any]:
    return [float(call.attrs.pad_value)]


def _concat(binding: Any, _: Any, values: PackedValues) -> Any:
    """Concat of channels, where each operand fills whole blocks."""
    from tvm import relax

    operands = [_operand(field, values) for field in _fields(binding.value.args[0])]
    if int(binding.value.attrs.axis) % 4 != 1 or any(operand is None or not _is_var(operand) for operand in operands):
        return None
    return relax.op.concat(operands, axis=1)


def _fields(expression: Any) -> Sequence[Any]:
    """The fields of a tuple; none where it is a variable."""
    return list(getattr(expression, "fields", ()))


def _split(binding: Any, values: PackedValues) -> Any:
    """Split of channels, at borders of blocks."""
    from tvm import relax

    source, attrs = binding.value.args[0], binding.value.attrs
    shape = shape_of(source)
    if source not in values.packed or len(shape) != 4 or int(attrs.axis) % 4 != 1:
        return None
    lanes, sections = values.lanes(source), attrs.indices_or_sections
    borders = [int(at) for at in sections] if hasattr(sections, "__len__") else []
    size = shape[1] // lanes
    if shape[1] % lanes or any(at % lanes for at in borders) or (not borders and size % int(sections)):
        return None
    blocks_at = [at // lanes for at in borders]
    return relax.op.split(values.packed[source], blocks_at or int(sections), axis=1)


def _slice(binding: Any, source: Any, values: PackedValues) -> Any:
    """Slice of channels, from one block's border to another's."""
    from tvm import relax

    ranges = [[number(field) for field in _fields(argument)] for argument in binding.value.args[1:]]
    if len(ranges) != 4 or any(len(bound) != 1 or bound[0] is None for bound in ranges):
        return None
    axis, first, last, step = (int(bound[0] or 0) for bound in ranges)
    lanes, channels = values.lanes(source), shape_of(source)[1]
    first, last = (min(at + channels if at < 0 else at, channels) for at in (first, last))
    if axis % 4 != 1 or step != 1 or first % lanes or last % lanes or channels % lanes or first >= last:
        return None
    return relax.op.strided_slice(values.packed[source], [1], [first // lanes], [last // lanes], [1])


def _resize(binding: Any, source: Any, values: PackedValues) -> Any:
    from tvm import relax

    attrs, packed = binding.value.attrs, values.packed[source]
    attributes = {name: getattr(attrs, name) for name in _RESIZE_ATTRIBUTES}
    roi, layout = tuple(number(value) or 0.0 for value in attrs.roi), f"NCHW{values.lanes(source)}c"
    return relax.op.image.resize2d(packed, shape_of(binding.var)[2:], roi=roi, layout=layout, **attributes)


_RESIZE_ATTRIBUTES = (
    *("method", "coordinate_transformation_mode", "rounding_method"),
    *("cubic_alpha", "cubic_exclude", "extrapolation_value"),
)


def _is_var(expression: Any) -> bool:
    from tvm import relax

    return isinstance(expression, relax.Var)


_Rule = Callable[[Any, Any, PackedValues], Any]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_POOLS, _pool),
    "relax.concat": _concat,
    "relax.image.resize2d": _resize,
    "relax.mean": _mean,
    "relax.nn.pad": _pad,
    "relax.strided_slice": _slice,
}
