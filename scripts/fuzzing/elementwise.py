"""Nodes of arithmetic, comparison and reduction, with all their attributes."""

from __future__ import annotations

import numpy as np

from fuzzing.sketch import FLOATS, INTEGERS, Sketch

_UNARY = {
    **dict.fromkeys(
        ["Abs", "Neg", "Sign", "Relu", "Floor", "Ceil", "Identity", "Sigmoid", "Tanh", "Exp", "Softplus", "Softsign"], 7
    ),
    **dict.fromkeys(["Cos", "Sin", "Atan", "Tan", "Selu"], 7),
    **dict.fromkeys(["Erf", "Sinh", "Cosh", "Asinh"], 9),
    "Round": 11,
    "HardSwish": 14,
    "Mish": 18,
}
"""Operator of one float → oldest opset that has it."""
_BOUNDED = {"Acos": 7, "Asin": 7, "Atanh": 9}
_POSITIVE = {"Log": 7, "Sqrt": 7, "Reciprocal": 7, "Acosh": 9}
_PARAMETERS = {
    "Elu": (7, ("alpha",)),
    "LeakyRelu": (7, ("alpha",)),
    "HardSigmoid": (7, ("alpha", "beta")),
    "Selu": (7, ("alpha", "gamma")),
    "ThresholdedRelu": (10, ("alpha",)),
    "Celu": (12, ("alpha",)),
    "Shrink": (9, ("bias", "lambd")),
    "Swish": (24, ("alpha",)),
}
_ARITHMETIC = ("Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "PRelu", "Mod", "Mean", "Sum")
_COMPARISONS = {"Equal": 7, "Greater": 7, "Less": 7, "GreaterOrEqual": 12, "LessOrEqual": 12}
_REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd \
ReduceSumSquare"


def _since(sketch: Sketch, table: dict[str, int]) -> str:
    return str(sketch.choice(*(name for name, opset in table.items() if opset <= sketch.opset)))


def unary(sketch: Sketch) -> None:
    """One float in, one out."""
    sketch.node(_since(sketch, _UNARY), [sketch.value(kinds=(sketch.kind,))])


def bounded(sketch: Sketch) -> None:
    """Operators that are defined from −1 to 1, or above 0."""
    source = sketch.value()
    if sketch.chance(50):
        inside = sketch.node("Tanh", [source])
        operator = _since(sketch, _BOUNDED)
    else:
        squared = sketch.node("Mul", [source, source])
        inside = squared and sketch.node("Add", [*squared, sketch.constant(np.array(1.5, sketch.kind))])
        operator = _since(sketch, _POSITIVE)
    if inside:
        sketch.node(operator, inside)


def with_parameters(sketch: Sketch) -> None:
    """Activations with attributes of their own."""
    fitting = {name: names for name, (opset, names) in _PARAMETERS.items() if opset <= sketch.opset}
    operator = sketch.choice(*fitting)
    values = {name: sketch.choice(None, 0.5, 1.0, 0.1, 0.0, 2.0, -0.3) for name in fitting[operator]}
    sketch.node(operator, [sketch.value()], **values)


def gelu(sketch: Sketch) -> None:
    """Gelu, exact or by tanh."""
    if sketch.opset >= 20:
        sketch.node("Gelu", [sketch.value()], approximate=sketch.choice(None, "none", "tanh"))


def integer_unary(sketch: Sketch) -> None:
    """Abs, Neg, Sign, BitwiseNot of integers; Not of booleans."""
    if sketch.chance(30):
        sketch.node("Not", [sketch.value(kinds=("bool",))])
    else:
        operators = ("Abs", "Neg", "Sign", *(("BitwiseNot",) if sketch.opset >= 18 else ()))
        sketch.node(sketch.choice(*operators), [sketch.value(kinds=INTEGERS)])


def other_operand(sketch: Sketch, name: str, *, wider: int = 10) -> str:
    """A value of the same type whose shape broadcasts with this one: another value, or a constant.

    Args:
        sketch: The graph.
        name: The first operand.
        wider: In how many of 100 draws the result may have a higher rank than the first operand.
    """
    array = sketch.of(name)
    equal = [other for other, made in sketch.values.items() if (made.shape, made.dtype) == (array.shape, array.dtype)]
    if sketch.chance(40):
        return str(sketch.choice(*equal))
    sizes = [size if sketch.chance(60) else 1 for size in array.shape]
    shape = sizes[sketch.integer(0, len(sizes)) :] if sizes else []
    if sketch.chance(wider):
        shape = [sketch.integer(1, 3), *([1] * (array.ndim - len(shape))), *shape]
    made = sketch.array(array.dtype.name, shape)
    if sketch.chance(30):
        made = np.full(shape, sketch.choice(0, 1, 2, 0.5), array.dtype)
    return sketch.constant(made) if sketch.chance(70) else sketch.input(made)


def arithmetic(sketch: Sketch) -> None:
    """Two operands with broadcasting, in either order; more for Max, Min, Mean and Sum."""
    operator = sketch.choice(*_ARITHMETIC)
    kinds = (sketch.kind,) if operator in ("PRelu", "Mean", "Sum") or sketch.chance(75) else INTEGERS
    first = sketch.value(kinds=kinds)
    operands = [first, other_operand(sketch, first, wider=0 if operator == "PRelu" else 10)]
    if operator in ("Div", "Mod"):
        made = sketch.of(operands[1])
        operands[1] = sketch.constant(np.where(made == 0, made.dtype.type(2), made))
    elif operator == "Pow":
        operands[1] = sketch.constant(np.array(sketch.choice(2, 3, 1, 0, 0.5, -1)).astype(sketch.of(first).dtype))
    elif operator in ("Max", "Min", "Mean", "Sum"):
        operands = operands[: sketch.integer(1, 2)] + [other_operand(sketch, first)] * sketch.integer(0, 1)
    elif operator not in ("PRelu",) and sketch.chance(40):
        operands.reverse()
    is_float = sketch.of(first).dtype.kind == "f"
    fmod = (1 if is_float else sketch.choice(None, 0, 1)) if operator == "Mod" else None
    sketch.node(operator, operands, fmod=fmod)


def comparison(sketch: Sketch) -> None:
    """Comparisons, and a Where behind some of them."""
    first = sketch.value(kinds=(sketch.kind,) if sketch.chance(70) else ("int64", "int32", "bool"))
    operator = "Equal" if sketch.of(first).dtype == bool else _since(sketch, _COMPARISONS)
    made = sketch.node(operator, [first, other_operand(sketch, first)])
    if made and sketch.opset >= 9 and sketch.chance(60):
        other = sketch.value()
        if sketch.chance(50) and sketch.of(first).dtype.kind == "f":
            other = first
        sketch.node("Where", [*made, other, other_operand(sketch, other)])


def logic(sketch: Sketch) -> None:
    """Operators on booleans and on bits."""
    if sketch.chance(60):
        first = sketch.value(kinds=("bool",))
        sketch.node(sketch.choice("And", "Or", "Xor"), [first, other_operand(sketch, first)])
    elif sketch.opset >= 18 and sketch.chance(50):
        first = sketch.value(kinds=INTEGERS)
        sketch.node(sketch.choice("BitwiseAnd", "BitwiseOr", "BitwiseXor"), [first, other_operand(sketch, first)])
    elif sketch.opset >= 11:
        first = sketch.value(kinds=("uint8", "uint16", "uint32", "uint64"))
        bits = sketch.constant(np.array(sketch.integer(0, 3), sketch.of(first).dtype))
        sketch.node("BitShift", [first, bits], direction=sketch.choice("LEFT", "RIGHT"))


def clip(sketch: Sketch) -> None:
    """Clip with one bound, both, or none; bounds are attributes before opset 11."""
    source = sketch.value(kinds=(sketch.kind,) if sketch.chance(80) or sketch.opset < 12 else INTEGERS)
    low, high = sketch.choice(None, 0, -1, 0.5), sketch.choice(None, 6, 1, 0.25)
    if sketch.opset < 11:
        sketch.node(
            "Clip", [source], min=None if low is None else float(low), max=None if high is None else float(high)
        )
        return
    kind = sketch.of(source).dtype
    if kind.kind == "u":
        low = None if low is None else abs(low)
    bounds = ["" if bound is None else sketch.constant(np.array(bound, kind)) for bound in (low, high)]
    while bounds and not bounds[-1]:
        bounds.pop()
    sketch.node("Clip", [source, *bounds])


def cast(sketch: Sketch) -> None:
    """Cast between all element types, CastLike among them."""
    source = sketch.value(kinds=(*FLOATS, *INTEGERS, "bool"))
    to = sketch.choice(*FLOATS, *INTEGERS, "bool")
    if sketch.of(source).dtype.kind == "f" and to.startswith("uint"):
        made = sketch.node("Abs", [source])  # what a negative number becomes is not defined
        if not made:
            return
        source = made[0]
    from onnx import helper

    number = helper.np_dtype_to_tensor_dtype(np.dtype(to))
    if sketch.opset >= 15 and sketch.chance(20):
        sketch.node("CastLike", [source, sketch.constant(np.zeros(1, to))])
    else:
        made = sketch.node("Cast", [source], to=number)
        if made and sketch.chance(50):
            sketch.node("Cast", made, to=helper.np_dtype_to_tensor_dtype(np.dtype(sketch.kind)))


def axes_of(sketch: Sketch, rank: int, *, least: int = 1) -> list[int]:
    """Some axes, from the front or from the back."""
    axes = sketch.subset(range(rank), least)
    return [axis - rank if sketch.opset >= 11 and sketch.chance(25) else axis for axis in axes]


def reduction(sketch: Sketch) -> None:
    """A reduction over some axes, all of them, or none."""
    operator = sketch.choice(*_REDUCTIONS.split())
    kinds = ("int64", "int32") if operator in ("ReduceMax", "ReduceMin", "ReduceSum") and sketch.chance(15) else ()
    source = sketch.value(kinds=kinds)
    if operator in ("ReduceLogSum",):
        made = sketch.node("Exp", [source])
        if not made:
            return
        source = made[0]
    axes = axes_of(sketch, sketch.of(source).ndim) if sketch.chance(85) and sketch.of(source).ndim else None
    keep = sketch.choice(None, 0, 1)
    if sketch.opset < (13 if operator == "ReduceSum" else 18):
        sketch.node(operator, [source], axes=axes, keepdims=keep)
        return
    noop = sketch.choice(None, 0, 1) if axes is None else None
    sketch.node(
        operator, [source, *([] if axes is None else [sketch.constant(axes)])], keepdims=keep, noop_with_empty_axes=noop
    )


def arg_extreme(sketch: Sketch) -> None:
    """ArgMax and ArgMin."""
    source = sketch.value(least=1)
    axis = sketch.integer(0 if sketch.opset < 11 else -1, sketch.of(source).ndim - 1)
    last = sketch.choice(None, 0, 1) if sketch.opset >= 12 else None
    operator = sketch.choice("ArgMax", "ArgMin")
    sketch.node(operator, [source], axis=axis, keepdims=sketch.choice(None, 0, 1), select_last_index=last)


def along_axis(sketch: Sketch) -> None:
    """Softmax and its like, whose meaning changed with opset 13; LpNormalization; CumSum."""
    source = sketch.value(least=1)
    rank = sketch.of(source).ndim
    axis = sketch.integer(0 if sketch.opset < 11 else -rank, rank - 1)
    operator = sketch.choice("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")
    if operator == "CumSum":
        if sketch.opset >= 11:
            number = sketch.constant(np.array(axis, sketch.choice("int64", "int32")))
            flags = {name: sketch.choice(None, 0, 1) for name in ("exclusive", "reverse")}
            sketch.node(operator, [source, number], **flags)
        return
    given = None if sketch.chance(25) and operator != "LpNormalization" else axis
    sketch.node(operator, [source], axis=given, p=sketch.choice(None, 1, 2) if operator[0:2] == "Lp" else None)


STEPS = (
    unary,
    unary,
    bounded,
    with_parameters,
    gelu,
    integer_unary,
    arithmetic,
    arithmetic,
    arithmetic,
    comparison,
    logic,
    clip,
    cast,
    reduction,
    arg_extreme,
    along_axis,
)
