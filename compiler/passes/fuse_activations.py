"""Activation functions spelled out → the operator.

1. Clip(Clip(x, a, b), c, d), Relu as Clip(0, ∞)      → Clip(x, lo, hi), lo = clip(a, c, d), hi = clip(b, c, d);
   a bound of its own, so intervals that do not overlap are right too. Relu(Relu(x)) → Relu(x). Max(Min) chains are
   left alone.
2. x·HardSigmoid(x; 1/6, 1/2), x·Clip(x + 3, 0, 6) / 6 in every order of the products → HardSwish(x)   (opset 14)
3. x·Sigmoid(x)                                        → Swish(x)                                       (opset 24)
4. Relu(x) − a·Relu(−x), Relu(x) + c·Relu(−x)          → PRelu(x, a), PRelu(x, −c)
5. Where(x > 0, x, a·x), Where(x < 0, a·x, x), Max(x, a·x) with 0 ≤ a ≤ 1 → PRelu(x, a)

A slope of one element becomes LeakyRelu. Where the opset lacks an operator, the reason is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase

from compiler.passes.matching import (
    FLOATS,
    Refused,
    broadcasts_into,
    producer,
    rank_of,
    require_opset,
    require_scalar,
    rule_of,
)
from compiler.passes.rules import RulePass
from compiler.passes.values import constant_of, display_name, scalar_of

HARD_SWISH_OPSET, SWISH_OPSET = 14, 24
CLIP_INPUTS_OPSET = 11


class MergeRelus(RewriteRuleClassBase):
    """Relu twice is Relu once."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(op.Relu(x))

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Relu(x)


class MergeClips(RewriteRuleClassBase):
    """Case 1 for two operators, each Relu or Clip."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"Merge{first}{second}")
        self._first, self._second = first, second

    def pattern(self, op: Any, x: Any) -> Any:
        inner = getattr(op, self._first)(x, _allow_other_inputs=True, _outputs=["inner"])
        return getattr(op, self._second)(inner, _allow_other_inputs=True, _outputs=["outer"])

    def check(self, context: MatchContext, x: ir.Value, inner: ir.Value, outer: ir.Value) -> MatchResult:
        require_opset(context, CLIP_INPUTS_OPSET, "Clip with inputs")
        if x.dtype not in FLOATS:
            raise Refused(f"'{x.name}' is not known to be of a floating-point type")
        _merged_bounds(producer(inner), producer(outer))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, inner: ir.Value, outer: ir.Value) -> Any:
        bounds = _merged_bounds(producer(inner), producer(outer))
        dtype = (x.dtype or ir.DataType.FLOAT).numpy()
        name = display_name(producer(outer))
        inputs = [
            None if np.isinf(bound) else op.initializer(ir.tensor(np.array(bound, dtype)), name=f"{name}.{role}")
            for bound, role in zip(bounds, ("min", "max"), strict=True)
        ]
        return op.Clip(x, *(inputs if inputs[1] is not None else inputs[:1]))


class FuseHardSwish(RewriteRuleClassBase):
    """Case 2 from HardSigmoid."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.HardSigmoid(x, _outputs=["gate"]))

    def check(self, context: MatchContext, x: ir.Value, gate: ir.Value) -> MatchResult:
        attributes = producer(gate).attributes
        alpha, beta = attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5)
        if abs(alpha - 1.0 / 6.0) > 1e-5 or abs(beta - 0.5) > 1e-6:
            raise Refused(f"HardSigmoid has alpha {alpha:.6g} and beta {beta:.6g}, not 1/6 and 1/2")
        require_opset(context, HARD_SWISH_OPSET, "HardSwish")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, gate: ir.Value) -> Any:
        return op.HardSwish(x)


Association = Callable[[Any, Any, Any, Any], Any]

ASSOCIATIONS: tuple[tuple[str, Association], ...] = (
    ("DivLast", lambda op, x, clipped, six: op.Div(op.Mul(x, clipped), six)),
    ("DivFirst", lambda op, x, clipped, six: op.Mul(x, op.Div(clipped, six))),
    ("DivX", lambda op, x, clipped, six: op.Mul(op.Div(x, six), clipped)),
)


class FuseClippedHardSwish(RewriteRuleClassBase):
    """Case 2 from Clip, for one order of product and quotient."""

    def __init__(self, name: str, associate: Association) -> None:
        super().__init__(f"FuseHardSwish{name}")
        self._associate = associate

    def pattern(self, op: Any, x: Any, three: Any, six: Any) -> Any:
        clipped = op.Clip(x + three, _allow_other_inputs=True, _outputs=["clipped"])
        return self._associate(op, x, clipped, six)

    def check(
        self, context: MatchContext, x: ir.Value, three: ir.Value, six: ir.Value, clipped: ir.Value
    ) -> MatchResult:
        rank = rank_of(x)
        require_scalar(three, 3.0, "the summand", rank=rank)
        require_scalar(six, 6.0, "the divisor", rank=rank)
        if _bounds(producer(clipped)) != (0.0, 6.0):
            raise Refused("Clip does not clip to 0 and 6")
        require_opset(context, HARD_SWISH_OPSET, "HardSwish")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, three: ir.Value, six: ir.Value, clipped: ir.Value) -> Any:
        return op.HardSwish(x)


class FuseSwish(RewriteRuleClassBase):
    """Case 3."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def check(self, context: MatchContext, x: ir.Value) -> MatchResult:
        require_opset(context, SWISH_OPSET, "Swish")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Swish(x)


class FusePRelu(RewriteRuleClassBase):
    """Cases 4 and 5; `spell` writes the form, `sign` turns its constant into the slope."""

    def __init__(self, name: str, spell: Association, *, sign: float = 1.0, is_max: bool = False) -> None:
        super().__init__(f"FusePRelu{name}")
        self._spell, self._sign, self._is_max = spell, sign, is_max

    def pattern(self, op: Any, x: Any, slope: Any, zero: Any) -> Any:
        return self._spell(op, x, slope, zero)

    def check(self, context: MatchContext, x: ir.Value, slope: ir.Value, zero: Any) -> MatchResult:
        array: NDArray[Any] | None = constant_of(slope)
        if array is None or x.dtype not in FLOATS:
            raise Refused("the slope is not constant, or the type is not known to be a floating-point one")
        if not broadcasts_into(slope, x):
            raise Refused(f"the slope '{slope.name}' may grow the shape of '{x.name}'")
        if zero is not None:
            _require_zero(zero, rank_of(x))
        if self._is_max and not bool(((array >= 0) & (array <= 1)).all()):
            raise Refused("Max(x, a·x) is no PRelu for a slope outside 0 to 1")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, slope: ir.Value, zero: Any) -> Any:
        array: NDArray[Any] | None = constant_of(slope)
        number = scalar_of(slope)
        if number is not None and x.dtype != ir.DataType.DOUBLE:
            return op.LeakyRelu(x, alpha=self._sign * number)
        if self._sign > 0 or array is None:
            return op.PRelu(x, slope)
        return op.PRelu(x, op.initializer(ir.tensor(-array), name=f"{slope.name}_negated"))


def _bounds(node: ir.Node) -> tuple[float, float]:
    """What Relu or Clip clips to; Clip's bounds are inputs since opset 11, attributes before."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if len(node.inputs) == 1:
        return node.attributes.get_float("min", -np.inf), node.attributes.get_float("max", np.inf)
    inputs = [*node.inputs[1:3], None][:2]
    lowest, highest = (
        default if value is None else scalar_of(value) for value, default in zip(inputs, (-np.inf, np.inf), strict=True)
    )
    if lowest is None or highest is None:
        raise Refused("a bound of Clip is not constant")
    return lowest, highest


def _merged_bounds(inner: ir.Node, outer: ir.Node) -> tuple[float, float]:
    (a, b), (c, d) = _bounds(inner), _bounds(outer)
    if not (a <= b and c <= d):
        raise Refused("the bounds of Clip are not in order")
    return min(max(a, c), d), min(max(b, c), d)


def _require_zero(zero: ir.Value, rank: int | None) -> None:
    require_scalar(zero, 0.0, "what x is compared with", rank=rank)


def _branches(comparison: str, *, is_x_if_true: bool) -> Association:
    def spell(op: Any, x: Any, slope: Any, zero: Any) -> Any:
        condition, scaled = getattr(op, comparison)(x, zero), op.Mul(x, slope)
        return op.Where(condition, x, scaled) if is_x_if_true else op.Where(condition, scaled, x)

    return spell


PRELU_FORMS = (
    FusePRelu("Sub", lambda op, x, slope, zero: op.Sub(op.Relu(x), op.Mul(slope, op.Relu(op.Neg(x))))),
    FusePRelu("Add", lambda op, x, slope, zero: op.Add(op.Relu(x), op.Mul(slope, op.Relu(op.Neg(x)))), sign=-1.0),
    FusePRelu("Max", lambda op, x, slope, zero: op.Max(x, op.Mul(x, slope)), is_max=True),
    FusePRelu("MaxSwapped", lambda op, x, slope, zero: op.Max(op.Mul(x, slope), x), is_max=True),
    *(
        FusePRelu(f"Where{name}", _branches(name, is_x_if_true=is_x_if_true))
        for name, is_x_if_true in (("Greater", True), ("GreaterOrEqual", True), ("Less", False), ("LessOrEqual", False))
    ),
)

FUSE_ACTIVATIONS = RulePass(
    "fuse-activations",
    [
        rule_of(rule)
        for rule in (
            MergeRelus(),
            *(MergeClips(*pair) for pair in (("Relu", "Clip"), ("Clip", "Relu"), ("Clip", "Clip"))),
            FuseHardSwish(),
            *(FuseClippedHardSwish(*association) for association in ASSOCIATIONS),
            FuseSwish(),
            *PRELU_FORMS,
        )
    ],
    commute=True,
)
