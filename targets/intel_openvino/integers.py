"""Which 64-bit integers a model needs more than 32 bits for: OpenVINO's CPU plugin computes INT64 and UINT32 in int32.

Ranges are propagated from constants, sizes, types and indices through the graph (interval arithmetic). What indexes
an axis is within the axis, or the model is wrong for that input anyway. An integer input of the model is taken to be
within ±(2³⁰ − 1), and the runner refuses others. Bodies of If, Loop and Scan are not looked into, and what they give is
taken to fit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.target import Range, Refusal, constant_of, op_key
from targets.intel_openvino.toolchain import INPUT_LIMIT

LOW, HIGH = -(2**31), 2**31 - 1
_WIDE = frozenset({"INT64", "UINT32", "UINT64"})

_MOVES = frozenset(
    {"Compress", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"}
    | {"MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Resize", "ReverseSequence", "Slice", "Split"}
    | {"SpaceToDepth", "Squeeze", "Tile", "Transpose", "Trilu", "Unique", "Unsqueeze"}
)
"""Operators whose first output holds elements of the first input, or lies between them; Trilu adds zeros."""
_JOINS = frozenset({"Concat", "Max", "Min", "Mean"})
_PLACES = frozenset({"Shape", "Size", "NonZero", "ArgMax", "ArgMin", "NonMaxSuppression"})
"""Operators that count or place elements."""
_INDEXED = frozenset({"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"})
"""Operators whose second input holds indices of the first: of one axis, or, without an attribute, of any."""
_RESHAPES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Flatten", "Tile"})
"""Operators whose output holds all elements of the first input and no others."""
_WITH_BODIES = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True)
class Interval:
    """What a value's elements lie between.

    Args:
        low: The least element may be this.
        high: The greatest element may be this.
        is_size: Whether it counts elements of a tensor, as a product of sizes does: no tensor has more than 2³¹ − 1.
    """

    low: float
    high: float
    is_size: bool = False

    @property
    def fits(self) -> bool:
        """Whether 32 bits hold all of it."""
        return self.low >= LOW and self.high <= HIGH


UNKNOWN = Interval(-math.inf, math.inf)
_INT32 = Interval(LOW, HIGH)
_SIZE = Interval(0, HIGH, is_size=True)


def refuse_wide_integers(model: ir.Model, dims: Mapping[str, Range]) -> tuple[Refusal, ...]:
    """Every operator whose 64-bit result, by what is known of its inputs, may need more than 32 bits.

    Args:
        model: The border model, with types and shapes.
        dims: Symbolic dimension → its range.
    """
    known: dict[ir.Value, Interval] = {}
    refusals = []
    for node in model.graph:
        for place, value in enumerate(node.outputs):
            interval = _narrow(_interval(node, place, known, dims), value, dims)
            is_wide = value.dtype is not None and value.dtype.name in _WIDE and not interval.fits
            known[value] = _INT32 if is_wide else interval  # each is named where it arises, not what follows from it
            if is_wide and not _only_ends_slices(value):
                refusals.append(Refusal(node.name or "(unnamed)", op_key(node), _reason(interval)))
    refusals += [*_refuse_constants(model)]
    return tuple(refusals)


def _reason(interval: Interval) -> str:
    bounds = f"{interval.low:.4g} to {interval.high:.4g}" if interval != UNKNOWN else "of no known range"
    return f"its 64-bit integers ({bounds}) may need more than the 32 bits that OpenVINO computes them in"


def _refuse_constants(model: ir.Model) -> Iterator[Refusal]:
    """Constants beyond 32 bits; those that only say "to the end" of a Slice are clamped by OpenVINO, as they should."""
    for value in model.graph.initializers.values():
        readers = [] if _only_ends_slices(value) else [*value.uses()]
        if readers and value.dtype is not None and value.dtype.name in _WIDE and not _of(value, {}, {}).fits:
            reason = f"its constant '{value.name}' needs more than the 32 bits that OpenVINO computes integers in"
            yield Refusal(readers[0][0].name or "(unnamed)", op_key(readers[0][0]), reason)


def _only_ends_slices(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and all(node.op_type == "Slice" and index in (1, 2) for node, index in uses)


def _of(value: ir.Value | None, known: Mapping[ir.Value, Interval], dims: Mapping[str, Range]) -> Interval:
    """The interval of an input of a node."""
    if value is None:
        return UNKNOWN
    if value in known:
        return known[value]
    array = constant_of(value)
    if array is not None and array.dtype.kind in "iufb":
        numbers = array.astype(np.float64)
        return Interval(float(numbers.min()), float(numbers.max())) if numbers.size else Interval(0, 0)
    is_integer = value.dtype is not None and value.dtype.is_integer()
    return _narrow(Interval(-INPUT_LIMIT, INPUT_LIMIT) if is_integer else _type_range(value), value, dims)


def _type_range(value: ir.Value) -> Interval:
    if value.dtype is None or value.dtype.is_floating_point():
        return UNKNOWN
    if value.dtype == ir.DataType.BOOL:
        return Interval(0, 1)
    return Interval(float(value.dtype.min), float(value.dtype.max))  # numpy knows no integers of 4 bits


def _narrow(interval: Interval, value: ir.Value, dims: Mapping[str, Range]) -> Interval:
    """The interval, within what its use as an index allows, and within its type where that is 32 bits or fewer."""
    sizes = [*_index_bounds(value, dims)]
    if sizes:
        return Interval(max(interval.low, -min(sizes)), min(interval.high, min(sizes) - 1), interval.is_size)
    if value.dtype is not None and value.dtype.is_integer() and value.dtype.name not in _WIDE:
        return _type_range(value)
    return interval


def _index_bounds(value: ir.Value, dims: Mapping[str, Range]) -> Iterator[int]:
    """Elements of each axis that a value indexes, itself or reshaped."""
    for node, index in value.uses():
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if index == 0 and node.op_type in _RESHAPES:
            yield from _index_bounds(node.outputs[0], dims)
        elif index == 1 and node.op_type in _INDEXED and shape is not None and len(shape):
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
            is_any = node.op_type.endswith("ND")
            yield max(_most(size, dims) for size in shape) if is_any else _most(shape[axis], dims)


def _most(size: object, dims: Mapping[str, Range]) -> int:
    if isinstance(size, int):
        return size
    known = dims.get(str(size))
    return known.max if known is not None else HIGH


def _interval(node: ir.Node, place: int, known: Mapping[ir.Value, Interval], dims: Mapping[str, Range]) -> Interval:
    output = node.outputs[place]
    if output.dtype == ir.DataType.BOOL:
        return Interval(0, 1)
    inputs = [_of(value, known, dims) for value in node.inputs if value is not None]
    op = node.op_type
    if op in _WITH_BODIES:
        return _INT32
    if op == "Shape" and node.inputs[0] is not None and node.inputs[0].shape is not None:
        most = max((_most(size, dims) for size in node.inputs[0].shape), default=0)
        return Interval(0, most, is_size=True)
    if op in _PLACES or (op in ("TopK", "MaxPool", "Unique") and place > 0):
        return _SIZE
    if op == "Constant":
        return _of(output, {}, dims)
    if op in _MOVES or (op == "TopK" and place == 0):
        return _union([inputs[0], Interval(0, 0)]) if op == "Trilu" else inputs[0]
    if op in _JOINS:
        return _union(inputs)
    rule = _RULES.get(op)
    return rule(node, inputs) if rule is not None else _type_or_unknown(output)


def _type_or_unknown(output: ir.Value) -> Interval:
    """Where no rule says more: the type, if it is narrow; nothing, if it is not."""
    if output.dtype is None or output.dtype.name in _WIDE or output.dtype.is_floating_point():
        return UNKNOWN
    return _type_range(output)


def _union(intervals: Sequence[Interval]) -> Interval:
    sizes = all(interval.is_size or interval.low >= 0 for interval in intervals)
    any_size = any(interval.is_size for interval in intervals)
    low, high = min(interval.low for interval in intervals), max(interval.high for interval in intervals)
    return Interval(low, high, is_size=sizes and any_size)


def _corners(function: Callable[[float, float], float]) -> Callable[[ir.Node, Sequence[Interval]], Interval]:
    """A rule for an operator of two inputs that is monotonic in each: its extremes are at the ends."""

    def rule(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
        if len(inputs) != 2:
            return UNKNOWN
        first, second = inputs
        ends = itertools.product((first.low, first.high), (second.low, second.high))
        values = [function(a, b) for a, b in ends]
        if any(math.isnan(value) for value in values):
            return UNKNOWN
        low, high = min(values), max(values)
        counts = all(interval.is_size or interval.low >= 0 for interval in inputs) and any(i.is_size for i in inputs)
        return Interval(max(low, 0), min(high, HIGH), is_size=True) if counts else Interval(low, high)

    return rule


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b  # 0 · inf is no NaN here: zero elements stay zero


def _divide(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """By a divisor that is no fraction the quotient is no larger; by what may be below 1 in size, unknown."""
    first, second = inputs
    if second.low > 0:
        ends = (first.low / second.low, first.low / second.high, first.high / second.low, first.high / second.high)
        return Interval(min(ends), max(ends), is_size=first.is_size)
    output = node.outputs[0]
    largest = max(abs(first.low), abs(first.high))
    return Interval(-largest, largest) if output.dtype is not None and output.dtype.is_integer() else UNKNOWN


def _subtract(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    first, second = inputs
    return Interval(first.low - second.high, first.high - second.low)


def _modulo(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    largest = max(abs(inputs[1].low), abs(inputs[1].high))
    return Interval(0 if inputs[1].low >= 0 and inputs[0].low >= 0 else -largest, largest)


def _sum_over(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """As many addends as the input has elements at most."""
    data, (first, *_) = node.inputs[0], inputs
    if data is None or data.shape is None or not all(isinstance(size, int) for size in data.shape):
        return first if first.is_size or (first.low, first.high) == (0, 0) else _counted(first)
    count = math.prod(int(size) for size in data.shape if isinstance(size, int))
    return Interval(min(first.low, first.low * count), max(first.high, first.high * count))


def _counted(addend: Interval) -> Interval:
    """A sum of zeros and ones counts elements; of other numbers, over an open size, nothing is known."""
    return _SIZE if (addend.low, addend.high) == (0, 1) else UNKNOWN


def _product_over(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return _SIZE if inputs[0].is_size else UNKNOWN


def _cast(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """Towards zero; of a value that has no bounds the result has none."""
    first = inputs[0]
    return Interval(math.trunc(first.low), math.trunc(first.high), first.is_size) if _ends(first) else first


def _ends(interval: Interval) -> bool:
    return math.isfinite(interval.low) and math.isfinite(interval.high)


def _where(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return _union(inputs[1:])


def _first_and_updates(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    reduction = node.attributes["reduction"].as_string() if "reduction" in node.attributes else "none"
    return UNKNOWN if reduction in ("add", "mul") else _union([inputs[0], inputs[-1]])


def _pad(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return _union([inputs[0], inputs[2] if len(inputs) > 2 else Interval(0, 0)])


def _clip(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    low = inputs[1].low if len(node.inputs) > 1 and node.inputs[1] is not None else -math.inf
    high = inputs[-1].high if len(node.inputs) > 2 and node.inputs[2] is not None else math.inf
    return Interval(max(inputs[0].low, low), min(inputs[0].high, high), inputs[0].is_size)


def _filled(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    tensor = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1)
    return Interval(float(tensor.min()), float(tensor.max()))


def _one_hot(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return inputs[-1]


def _absolute(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(0, max(abs(inputs[0].low), abs(inputs[0].high)))


def _negated(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(-inputs[0].high, -inputs[0].low)


def _range(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return _union(inputs[:2])


def _rounded(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    first = inputs[0]
    return Interval(0, min(first.high + 1, HIGH), True) if first.is_size else Interval(first.low - 1, first.high + 1)


def _shifted(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    is_right = "direction" in node.attributes and node.attributes["direction"].as_string() == "RIGHT"
    return Interval(min(inputs[0].low, 0), max(inputs[0].high, 0)) if is_right else UNKNOWN


def _from(low: float, high: float) -> Callable[[ir.Node, Sequence[Interval]], Interval]:
    return lambda node, inputs: Interval(low, high)


_RULES: Mapping[str, Callable[[ir.Node, Sequence[Interval]], Interval]] = {
    "Abs": _absolute,
    "Add": _corners(lambda a, b: a + b),
    "BitShift": _shifted,
    "BitwiseAnd": _from(LOW, HIGH),
    "BitwiseNot": _from(LOW, HIGH),
    "BitwiseOr": _from(LOW, HIGH),
    "BitwiseXor": _from(LOW, HIGH),
    "Cast": _cast,
    "CastLike": lambda node, inputs: _cast(node, inputs[:1]),
    "Ceil": _rounded,
    "Clip": _clip,
    "ConstantOfShape": _filled,
    "CumSum": _sum_over,
    "Div": _divide,
    "EyeLike": _from(0, 1),
    "Floor": _rounded,
    "HardSigmoid": _from(0, 1),
    "Mod": _modulo,
    "Mul": _corners(_product),
    "Neg": _negated,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "ReduceProd": _product_over,
    "ReduceSum": _sum_over,
    "Round": _rounded,
    "ScatterElements": _first_and_updates,
    "ScatterND": _first_and_updates,
    "Sigmoid": _from(0, 1),
    "Sign": _from(-1, 1),
    "Softmax": _from(0, 1),
    "Sqrt": lambda node, inputs: Interval(0, max(1.0, inputs[0].high), inputs[0].is_size),
    "Sub": _subtract,
    "Tanh": _from(-1, 1),
    "Where": _where,
}
"""Operator → interval of its outputs from those of its inputs."""
