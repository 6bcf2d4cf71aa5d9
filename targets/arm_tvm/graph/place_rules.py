"""How operators keep places apart: a rule for each says where they are in its outputs; None: they are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

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


@dataclass(frozen=True)
class Step:
    """One node at the first size, with where the places are in its inputs.

    Args:
        node: The node.
        places: Of each input; None where it has none.
        opset: Of the model.
    """

    node: ir.Node
    places: Sequence[Places | None]
    opset: int

    def rank(self, index: int) -> int:
        """Number of axes of an input."""
        return len(self.shape(self.node.inputs[index]))

    @staticmethod
    def shape(value: ir.Value | None) -> tuple[int, ...]:
        """Sizes of a tensor; none of one that is left out."""
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


Rule = Callable[[Step, int], "Places | None"]
"""Where the places are in output `index`; None where they are mixed."""


def _elementwise(step: Step, index: int) -> Places | None:
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


def _seen_at_one(step: Step, index: int) -> Places | None:
    """Places that Expand makes of an axis of one element, or of none."""
    if step.node.op_type != "Expand":
        return None
    shape, source = step.shape(step.node.outputs[index]), step.shape(step.node.inputs[0])
    grown = [axis for axis, size in enumerate(shape) if size != _size_at(source, axis - len(shape))]
    # which of the grown axes has the places is seen from outside; all of them repeat what is there
    return Places(grown[0], 1) if len(grown) == 1 else None


def _size_at(shape: Sequence[int], axis: int) -> int:
    return shape[axis] if -axis <= len(shape) else 1


def _images(step: Step, index: int) -> Places | None:
    places = step.places[0]
    others = step.places[1:] if step.node.op_type != "GridSample" else step.places[2:]
    first = places is not None and places.axis == 0 and not any(others)
    grid = step.node.op_type != "GridSample" or step.places[1] == places
    if index and step.node.op_type == "MaxPool":
        return None  # indices count from the first image on
    if step.node.attributes.get_int("training_mode", 0):
        return None  # means are those of the batch
    return places if first and grid else None


def _quantizer(step: Step, index: int) -> Places | None:
    places, shape = step.alone(), step.shape(step.node.inputs[1])
    if places is None or prod(shape) == 1:
        return places
    axis = step.node.attributes.get_int("axis", 1) % step.rank(0)
    return places if axis != places.axis and len(shape) == 1 else None


def _along_axis(step: Step, index: int) -> Places | None:
    places, rank, op = step.alone(), step.rank(0), step.node.op_type
    flat = op in ("Softmax", "LogSoftmax", "Hardmax") and step.opset < _FLAT_SOFTMAX
    given = step.node.attributes.get_int("axis")
    axis = (given if given is not None else 1 if flat else _AXIS_DEFAULTS[op]) % rank
    if places is None or places.axis == axis or (flat and places.axis > axis):
        return None
    keeps = op not in ("ArgMax", "ArgMin") or step.node.attributes.get_int("keepdims", 1) != 0
    return places if keeps else _without(places, {axis})


def _reduction(step: Step, index: int) -> Places | None:
    places, axes = step.alone(), step.axes("axes", 1)
    if places is None or not axes or places.axis in axes:
        return None
    return places if step.node.attributes.get_int("keepdims", 1) else _without(places, axes)


def _without(places: Places, axes: set[int]) -> Places:
    return Places(places.axis - sum(axis < places.axis for axis in axes), places.count)


def _normalization(step: Step, index: int) -> Places | None:
    places = step.alone()
    axis = step.node.attributes.get_int("axis", -1) % step.rank(0)
    return places if places is not None and places.axis < axis and index == 0 else None


def _mean_variance(step: Step, index: int) -> Places | None:
    places, axes = step.alone(), step.axes("axes", 1) or {0, 2, 3}
    return places if places is not None and places.axis not in axes else None


def _cumulative(step: Step, index: int) -> Places | None:
    places, axes = step.alone(), step.axes("", 1)
    return places if places is not None and axes is not None and places.axis not in axes else None


def _moved(step: Step, index: int) -> Places | None:
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


def _transposed(step: Step, index: int) -> Places | None:
    places, rank = step.alone(), step.rank(0)
    order = step.integers("perm", 1) or list(range(rank))[::-1]
    return None if places is None else Places(order.index(places.axis), places.count)


def _joined(step: Step, index: int) -> Places | None:
    places = set(step.places)
    axis = step.node.attributes.get_int("axis", 0) % step.rank(0)
    (first, *others) = places
    return first if first is not None and not others and first.axis != axis else None


def _sliced(step: Step, index: int) -> Places | None:
    places, starts = step.alone(), step.integers("starts", 1)
    axes = step.axes("axes", 3)
    if axes is None and starts is not None:
        axes = set(range(len(starts)))
    return places if places is not None and axes is not None and places.axis not in axes else None


def _gathered(step: Step, index: int) -> Places | None:
    (data, chosen), axis = step.places[:2], step.node.attributes.get_int("axis", 0) % step.rank(0)
    if data is not None and chosen is not None:
        return None
    if chosen is not None:
        return Places(axis + chosen.axis, chosen.count)
    if data is None or data.axis == axis:
        return None
    return data if data.axis < axis else Places(data.axis + step.rank(1) - 1, data.count)


def _gathered_elements(step: Step, index: int) -> Places | None:
    data, chosen = step.places[:2]
    axis = step.node.attributes.get_int("axis", 0) % step.rank(0)
    return data if data is not None and data == chosen and data.axis != axis else None


def _padded(step: Step, index: int) -> Places | None:
    places, pads = step.alone(), step.integers("pads", 1)
    if places is None or pads is None or len(pads) != 2 * step.rank(0):
        return None
    return places if not (pads[places.axis] or pads[places.axis + step.rank(0)]) else None


def _tiled(step: Step, index: int) -> Places | None:
    places, repeats = step.alone(), step.integers("repeats", 1)
    return places if places is not None and repeats is not None and repeats[places.axis] == 1 else None


def _product(step: Step, index: int) -> Places | None:
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


def _gemm(step: Step, index: int) -> Places | None:
    places = step.alone()
    plain = places is not None and places.axis == 0 and not step.node.attributes.get_int("transA", 0)
    return places if plain else None


def _recurrent(step: Step, index: int) -> Places | None:
    if step.node.attributes.get_int("layout", 0):
        return None
    places = [*step.places, *[None] * (8 - len(step.places))]
    wanted = {0: _RECURRENT_AXES["X"], 4: _RECURRENT_AXES["sequence_lens"], 5: 1, 6: 1}
    if places[0] is None or any(entry is not None and wanted.get(at) != entry.axis for at, entry in enumerate(places)):
        return None
    if any(entry is not None and entry.count != 1 for entry in places):
        return None
    return Places(_RECURRENT_AXES["Y" if index == 0 and step.node.outputs[0].name else "last"], 1)


def _reversed(step: Step, index: int) -> Places | None:
    data, lengths = step.places[:2]
    axis = step.node.attributes.get_int("batch_axis", 1)
    return data if data is not None and data.axis == axis and lengths in (None, Places(0, data.count)) else None


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a node's operator; None where there is none."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type.startswith("Reduce"):
        return _reduction
    return RULES.get(node.op_type)


RULES: Mapping[str, Rule] = {
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
