"""Whether a model computes each place of a dimension, as each sample of a batch, by itself.

The model is bound at two sizes, and each value must differ in one axis at most, by the factor by which the sizes do:
that axis holds the places, the elements of a place next to each other. A rule for each operator says whether it keeps
them apart and where they are afterwards. What has no rule is taken to mix them.

    value  (N, 8, 6) at N = 4 and 3:   axis 0, one element per place
    Reshape to (N · 8, 6):             axis 0, eight per place, since as many elements stand before the axis as before
    Softmax of axis 0:                 mixed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

_ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Cos Cosh Div
    Dropout Elu Equal Erf Exp Expand Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor
""".split()  # noqa: SIM905 - a list of names, not of strings
)
_OF_IMAGES = frozenset(
    """
    AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool GridSample
    GroupNormalization InstanceNormalization LRN LpPool MaxPool Resize SpaceToDepth
""".split()  # noqa: SIM905
)
"""Operators whose first axis is that of images, each computed by itself."""
_AXIS_DEFAULTS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "ArgMax": 0, "ArgMin": 0, "TopK": -1, "Split": 0}
"""Operators that work along one axis, with the value of `axis` where the attribute is absent."""
_MOVING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_RECURRENT_AXES = {"X": 1, "sequence_lens": 0, "states": 1, "Y": 2, "last": 1}
_FLAT_SOFTMAX = 13
"""Opset before which Softmax worked on all axes from `axis` on."""


@dataclass(frozen=True)
class Places:
    """Where the places of the dimension are in a value.

    Args:
        axis: The axis.
        count: Elements of it that each place has, next to each other.
    """

    axis: int
    count: int


class _Mixed(Exception):
    """Places are not kept apart, or nobody can tell; the message says where and why."""


def why_mixed(model: ir.Model, first: ir.Model, second: ir.Model, dimension: str, sizes: tuple[int, int]) -> str:
    """Why a model is not known to compute each place by itself; empty where it does.

    Args:
        model: The model with the dimension open.
        first, second: The same bound at two sizes; their constants become initializers.
        dimension: Name of the dimension.
        sizes: The two sizes.
    """
    branching = [node for node in model.graph.all_nodes() if node.op_type in ("If", "Loop", "Scan")]
    if branching:
        return f"{_label(branching[0])} may take another way at another size"
    for bound in (first, second):
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(bound)
    try:
        _Walk(dimension, sizes).follow(first, second)
    except _Mixed as error:
        return str(error)
    return ""


def places_of(before: Sequence[int], after: Sequence[int], sizes: tuple[int, int]) -> Places | None:
    """Where two shapes differ; None where they do not.

    Raises:
        ValueError: In more than one axis, or not as the sizes do.
    """
    axes = [axis for axis, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    if not axes:
        return None
    count, rest = divmod(before[axes[0]], sizes[0])
    if len(axes) > 1 or rest or count * sizes[1] != after[axes[0]]:
        raise ValueError("not one axis that grows with the dimension")
    return Places(axes[0], count)


class _Walk:
    """Both models, node by node."""

    def __init__(self, dimension: str, sizes: tuple[int, int]) -> None:
        self.dimension, self.sizes = dimension, sizes
        self.places: dict[ir.Value, Places | None] = {}

    def follow(self, first: ir.Model, second: ir.Model) -> None:
        nodes = list(first.graph), list(second.graph)
        if [node.op_type for node in nodes[0]] != [node.op_type for node in nodes[1]]:
            raise _Mixed(f"the graph is another one at another size of '{self.dimension}'")
        for values in zip(first.graph.inputs, second.graph.inputs, strict=True):
            self.places[values[0]] = self._seen(*values)
        opset = first.graph.opset_imports.get("", 1)
        for pair in zip(*nodes, strict=True):
            self._follow_node(*pair, opset)
        for value in first.graph.outputs:
            if self._of(value) is None and any(self.places.values()):
                raise _Mixed(f"output '{value.name}' has no axis of '{self.dimension}'")

    def _follow_node(self, node: ir.Node, other: ir.Node, opset: int) -> None:
        for mine, others in zip(node.inputs, other.inputs, strict=True):
            if mine is not None and others is not None and mine.const_value is not None:
                self.places[mine] = self._constant(node, mine, others)
        step = _Step(node, [None if value is None else self._of(value) for value in node.inputs], opset)
        outputs = [pair for pair in zip(node.outputs, other.outputs, strict=True) if pair[0].name]
        made = [self._seen(*pair) for pair in outputs]
        self.places |= dict(zip((pair[0] for pair in outputs), made, strict=True))
        if not any(step.places) and not any(made):
            return
        rule = _rule_of(node)
        if rule is None or _attributes(node) != _attributes(other):
            raise _Mixed(f"{_label(node)} may mix places of '{self.dimension}'")
        expected = [rule(step, node.outputs.index(value)) for value, _ in outputs]
        if None in expected or expected != made:
            raise _Mixed(f"{_label(node)} mixes places of '{self.dimension}'")

    def _of(self, value: ir.Value) -> Places | None:
        return self.places.get(value)

    def _seen(self, first: ir.Value, second: ir.Value) -> Places | None:
        if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
            raise _Mixed(f"the shape of '{first.name}' is not known")
        if not (first.shape.is_static() and second.shape.is_static()):
            raise _Mixed(f"the shape of '{first.name}' is not fixed")
        try:
            return places_of(first.shape.numpy(), second.shape.numpy(), self.sizes)
        except ValueError as error:
            raise _Mixed(f"'{first.name}' has {error}: '{self.dimension}'") from error

    def _constant(self, node: ir.Node, first: ir.Value, second: ir.Value) -> Places | None:
        """A constant: the same at every size, one for all places, or a shape."""
        if first.const_value is None or second.const_value is None:
            raise _Mixed(f"'{first.name}' is a constant at one size alone")
        if first.const_value is second.const_value:
            return None
        own, others = first.const_value.numpy(), second.const_value.numpy()
        if own.shape == others.shape and np.array_equal(own, others):
            return None
        if node.op_type in ("Reshape", "Expand") and node.inputs[1] is first:
            return None  # judged by what they make of it
        places = self._seen(first, second)
        if places is not None and places.count == 1:
            row = own.take([0], places.axis)
            if all(np.array_equal(array, np.broadcast_to(row, array.shape)) for array in (own, others)):
                return places
        raise _Mixed(f"the constant '{first.name}' depends on '{self.dimension}'")


@dataclass(frozen=True)
class _Step:
    """One node at the first size, with where the places are in its inputs."""

    node: ir.Node
    places: Sequence[Places | None]
    opset: int

    def rank(self, index: int) -> int:
        return len(self.shape(self.node.inputs[index]))

    @staticmethod
    def shape(value: ir.Value | None) -> tuple[int, ...]:
        return tuple(value.shape.numpy()) if value is not None and value.shape is not None else ()

    def alone(self) -> Places | None:
        """Of the first input, where no other has any."""
        return self.places[0] if not any(self.places[1:]) else None

    def integers(self, name: str, index: int) -> list[int] | None:
        """A list that is an attribute, or a constant input in later opsets; None where it is absent."""
        if name in self.node.attributes:
            value = self.node.attributes[name].value
            return [int(number) for number in value] if isinstance(value, (list, tuple)) else [int(value)]
        given = self.node.inputs[index] if index < len(self.node.inputs) else None
        if given is None or given.const_value is None:
            return None
        return [int(number) for number in given.const_value.numpy().reshape(-1)]

    def axes(self, name: str, index: int) -> set[int] | None:
        """The same as axes of the first input."""
        numbers = self.integers(name, index)
        return None if numbers is None else {number % max(1, self.rank(0)) for number in numbers}


_Rule = Callable[[_Step, int], "Places | None"]
"""Where the places are in output `index`; None where they are mixed."""


def _elementwise(step: _Step, index: int) -> Places | None:
    rank = len(step.shape(step.node.outputs[index]))
    moved = {
        Places(places.axis - step.rank(at) + rank, places.count) for at, places in enumerate(step.places) if places
    }
    if not moved:  # Expand of what all places have
        return _seen_at_one(step, index)
    (places, *others) = moved
    same = [value for at, value in enumerate(step.node.inputs) if value is not None and step.places[at] is None]
    broadcast = (
        all(_size_at(step.shape(value), places.axis - rank) == 1 for value in same) or step.node.op_type == "Expand"
    )
    return places if not others and broadcast else None


def _seen_at_one(step: _Step, index: int) -> Places | None:
    """Places that Expand makes of an axis of one element, or of none."""
    if step.node.op_type != "Expand":
        return None
    shape, source = step.shape(step.node.outputs[index]), step.shape(step.node.inputs[0])
    grown = [axis for axis, size in enumerate(shape) if size != _size_at(source, axis - len(shape))]
    # which of the grown axes has the places is seen from outside; all of them repeat what is there
    return Places(grown[0], 1) if len(grown) == 1 else None


def _size_at(shape: Sequence[int], axis: int) -> int:
    return shape[axis] if -axis <= len(shape) else 1


def _images(step: _Step, index: int) -> Places | None:
    places = step.places[0]
    others = step.places[1:] if step.node.op_type != "GridSample" else step.places[2:]
    first = places is not None and places.axis == 0 and not any(others)
    grid = step.node.op_type != "GridSample" or step.places[1] == places
    if index and step.node.op_type == "MaxPool":
        return None  # indices count from the first image on
    if step.node.attributes.get_int("training_mode", 0):
        return None  # means are those of the batch
    return places if first and grid else None


def _quantizer(step: _Step, index: int) -> Places | None:
    places, shape = step.alone(), step.shape(step.node.inputs[1])
    if places is None or prod(shape) == 1:
        return places
    axis = step.node.attributes.get_int("axis", 1) % step.rank(0)
    return places if axis != places.axis and len(shape) == 1 else None


def _along_axis(step: _Step, index: int) -> Places | None:
    places, rank, op = step.alone(), step.rank(0), step.node.op_type
    flat = op in ("Softmax", "LogSoftmax", "Hardmax") and step.opset < _FLAT_SOFTMAX
    given = step.node.attributes.get_int("axis")
    axis = (given if given is not None else 1 if flat else _AXIS_DEFAULTS[op]) % rank
    if places is None or places.axis == axis or (flat and places.axis > axis):
        return None
    keeps = op not in ("ArgMax", "ArgMin") or step.node.attributes.get_int("keepdims", 1) != 0
    return places if keeps else _without(places, {axis})


def _reduction(step: _Step, index: int) -> Places | None:
    places, axes = step.alone(), step.axes("axes", 1)
    if places is None or not axes or places.axis in axes:
        return None
    return places if step.node.attributes.get_int("keepdims", 1) else _without(places, axes)


def _without(places: Places, axes: set[int]) -> Places:
    return Places(places.axis - sum(axis < places.axis for axis in axes), places.count)


def _normalization(step: _Step, index: int) -> Places | None:
    places = step.alone()
    axis = step.node.attributes.get_int("axis", -1) % step.rank(0)
    return places if places is not None and places.axis < axis and index == 0 else None


def _mean_variance(step: _Step, index: int) -> Places | None:
    places, axes = step.alone(), step.axes("axes", 1) or {0, 2, 3}
    return places if places is not None and places.axis not in axes else None


def _cumulative(step: _Step, index: int) -> Places | None:
    places, axes = step.alone(), step.axes("", 1)
    return places if places is not None and axes is not None and places.axis not in axes else None


def _moved(step: _Step, index: int) -> Places | None:
    """Elements stay in their order: places are kept where as many elements stand before their axis."""
    places, before, after = step.alone(), step.shape(step.node.inputs[0]), step.shape(step.node.outputs[0])
    if places is None:
        return None
    outer, size = prod(before[: places.axis]), before[places.axis] // places.count
    inner = places.count * prod(before[places.axis + 1 :])
    for axis in range(len(after)):
        count, rest = divmod(after[axis], size)
        if prod(after[:axis]) == outer and not rest and count * prod(after[axis + 1 :]) == inner:
            return Places(axis, count)
    return None


def _transposed(step: _Step, index: int) -> Places | None:
    places, rank = step.alone(), step.rank(0)
    order = step.integers("perm", 1) or list(range(rank))[::-1]
    return None if places is None else Places(order.index(places.axis), places.count)


def _joined(step: _Step, index: int) -> Places | None:
    places = set(step.places)
    axis = step.node.attributes.get_int("axis", 0) % step.rank(0)
    (first, *others) = places
    return first if first is not None and not others and first.axis != axis else None


def _sliced(step: _Step, index: int) -> Places | None:
    places, starts = step.alone(), step.integers("starts", 1)
    axes = step.axes("axes", 3)
    if axes is None and starts is not None:
        axes = set(range(len(starts)))
    return places if places is not None and axes is not None and places.axis not in axes else None


def _gathered(step: _Step, index: int) -> Places | None:
    (data, chosen), axis = step.places[:2], step.node.attributes.get_int("axis", 0) % step.rank(0)
    if data is not None and chosen is not None:
        return None
    if chosen is not None:
        return Places(axis + chosen.axis, chosen.count)
    if data is None or data.axis == axis:
        return None
    return data if data.axis < axis else Places(data.axis + step.rank(1) - 1, data.count)


def _gathered_elements(step: _Step, index: int) -> Places | None:
    data, chosen = step.places[:2]
    axis = step.node.attributes.get_int("axis", 0) % step.rank(0)
    return data if data is not None and data == chosen and data.axis != axis else None


def _padded(step: _Step, index: int) -> Places | None:
    places, pads = step.alone(), step.integers("pads", 1)
    if places is None or pads is None or len(pads) != 2 * step.rank(0):
        return None
    return places if not (pads[places.axis] or pads[places.axis + step.rank(0)]) else None


def _tiled(step: _Step, index: int) -> Places | None:
    places, repeats = step.alone(), step.integers("repeats", 1)
    return places if places is not None and repeats is not None and repeats[places.axis] == 1 else None


def _product(step: _Step, index: int) -> Places | None:
    rank, aligned = len(step.shape(step.node.outputs[0])), set()
    if any(step.rank(at) < 2 for at in (0, 1)):
        return None
    for at, summed in ((0, 1), (1, 2)):
        places = step.places[at]
        if places is None:
            continue
        if places.axis == step.rank(at) - summed:
            return None
        aligned.add(Places(places.axis - step.rank(at) + rank, places.count))
    if len(aligned) != 1:
        return None
    (places,) = aligned
    for at in (0, 1):
        # an operand without places is the same for all: its axis, if it is one of matrices, has one element
        stacked = places.axis < rank - 2
        if stacked and step.places[at] is None and _size_at(step.shape(step.node.inputs[at]), places.axis - rank) != 1:
            return None
    return places


def _gemm(step: _Step, index: int) -> Places | None:
    places = step.alone()
    plain = places is not None and places.axis == 0 and not step.node.attributes.get_int("transA", 0)
    return places if plain else None


def _recurrent(step: _Step, index: int) -> Places | None:
    if step.node.attributes.get_int("layout", 0):
        return None
    places = [*step.places, *[None] * (8 - len(step.places))]
    wanted = {0: _RECURRENT_AXES["X"], 4: _RECURRENT_AXES["sequence_lens"], 5: 1, 6: 1}
    if places[0] is None or any(entry is not None and wanted.get(at) != entry.axis for at, entry in enumerate(places)):
        return None
    if any(entry is not None and entry.count != 1 for entry in places):
        return None
    return Places(_RECURRENT_AXES["Y" if index == 0 and step.node.outputs[0].name else "last"], 1)


def _reversed(step: _Step, index: int) -> Places | None:
    data, lengths = step.places[:2]
    axis = step.node.attributes.get_int("batch_axis", 1)
    return data if data is not None and data.axis == axis and lengths in (None, Places(0, data.count)) else None


def _rule_of(node: ir.Node) -> _Rule | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type.startswith("Reduce"):
        return _reduction
    return _RULES.get(node.op_type)


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_OF_IMAGES, _images),
    **dict.fromkeys(_AXIS_DEFAULTS, _along_axis),
    **dict.fromkeys(_MOVING, _moved),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantizer),
    "Concat": _joined,
    "CumSum": _cumulative,
    "Gather": _gathered,
    "GatherElements": _gathered_elements,
    "Gemm": _gemm,
    "MatMul": _product,
    "MeanVarianceNormalization": _mean_variance,
    "Pad": _padded,
    "ReverseSequence": _reversed,
    "Slice": _sliced,
    "Tile": _tiled,
    "Transpose": _transposed,
}


def _attributes(node: ir.Node) -> dict[str, object]:
    """What may be compared: attributes that are no tensors and no graphs."""
    return {
        name: tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value
        for name, attribute in node.attributes.items()
        if attribute.type
        in (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.FLOAT)
    }


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name or '(unnamed)'}'"
