"""GELU spelled out → Gelu (opset 20).

1. x·½·(1 + erf(x / √2)), also with x·(1/√2), in every order of the products   → Gelu(approximate=none)
2. x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³))), x³ as Pow or as products           → Gelu(approximate=tanh)

Below opset 20 nothing is done and the reason noted: the operator does not exist there, fusions do not raise the opset,
and OpenVINO, TensorRT and ONNX Runtime recognize the erf form themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase
from onnxscript.rewriter.pattern import OrValue

from compiler.passes.matching import FLOATS, Refused, rank_of, require_opset, require_scalar, rule_of
from compiler.passes.rules import RulePass

GELU_OPSET = 20

Association = Callable[[Any, Any, Any], Any]

ASSOCIATIONS: tuple[tuple[str, Association], ...] = (
    ("XHalfFirst", lambda x, half, gate: (x * half) * gate),
    ("XGateFirst", lambda x, half, gate: (x * gate) * half),
    ("HalfGateFirst", lambda x, half, gate: x * (half * gate)),
)
"""The three ways to multiply three factors; RulePass swaps the operands of each product."""


class FuseErfGelu(RewriteRuleClassBase):
    """Case 1 for one association."""

    def __init__(self, name: str, associate: Association) -> None:
        super().__init__(f"FuseErfGelu{name}")
        self._associate = associate

    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any, inverse: Any) -> Any:
        argument = OrValue([op.Div(x, root), op.Mul(x, inverse)])
        return self._associate(x, half, op.Erf(argument) + one)

    def check(
        self, context: MatchContext, x: ir.Value, half: ir.Value, one: ir.Value, root: Any, inverse: Any
    ) -> MatchResult:
        rank = _require_float(x)
        _require_half_and_one(half, one, rank)
        if root is not None:
            require_scalar(root, math.sqrt(2.0), "the divisor of x", rank=rank)
        else:
            require_scalar(inverse, math.sqrt(0.5), "the factor of x", rank=rank)
        require_opset(context, GELU_OPSET, "Gelu")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x, approximate="none")


class FuseTanhGelu(RewriteRuleClassBase):
    """Case 2 for one association."""

    def __init__(self, name: str, associate: Association) -> None:
        super().__init__(f"FuseTanhGelu{name}")
        self._associate = associate

    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any, small: Any, three: Any) -> Any:
        cube = OrValue([op.Pow(x, three), op.Mul(x, x * x)])
        inner = root * (x + small * cube)
        return self._associate(x, half, op.Tanh(inner) + one)

    def check(
        self,
        context: MatchContext,
        x: ir.Value,
        half: ir.Value,
        one: ir.Value,
        root: ir.Value,
        small: ir.Value,
        three: Any,
    ) -> MatchResult:
        rank = _require_float(x)
        _require_half_and_one(half, one, rank)
        require_scalar(root, math.sqrt(2.0 / math.pi), "the factor under tanh", rank=rank)
        require_scalar(small, 0.044715, "the factor of x³", rank=rank)
        if three is not None:
            require_scalar(three, 3.0, "the exponent of x", rank=rank)
        require_opset(context, GELU_OPSET, "Gelu")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x, approximate="tanh")


def _require_half_and_one(half: ir.Value, one: ir.Value, rank: int | None) -> None:
    require_scalar(half, 0.5, "the outer factor", rank=rank)
    require_scalar(one, 1.0, "the summand", rank=rank)


def _require_float(x: ir.Value) -> int | None:
    if x.dtype is not None and x.dtype not in FLOATS:
        raise Refused(f"'{x.name}' is not of a floating-point type")
    return rank_of(x)


FUSE_GELU = RulePass(
    "fuse-gelu",
    [rule_of(kind(*association)) for kind in (FuseErfGelu, FuseTanhGelu) for association in ASSOCIATIONS],
    commute=True,
)
