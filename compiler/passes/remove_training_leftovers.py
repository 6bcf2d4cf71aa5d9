"""Removes nodes of training and export that do nothing at inference.

1. Dropout at inference (training_mode absent or false; before opset 12 always), whose mask is not read.
2. x·1, 1·x, x / 1, x + 0, 0 + x, x − 0, x¹, where the constant does not grow the shape of x.

A graph output keeps its name: an Identity stays there, which `remove-identities` takes out where it can.
"""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRule, RewriteRuleClassBase

from compiler.passes.matching import OperandMatcher, Refused, broadcasts_into, producer, rule_of
from compiler.passes.rules import RulePass
from compiler.passes.values import constant_of

NEUTRAL = (
    ("Mul", 1, False),
    ("Mul", 1, True),
    ("Div", 1, False),
    ("Add", 0, False),
    ("Add", 0, True),
    ("Sub", 0, False),
    ("Pow", 1, False),
)
"""Operator, its neutral element, and whether that is the first operand."""


class DropDropout(RewriteRuleClassBase):
    """Case 1."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Dropout(x, _allow_other_inputs=True, _outputs=["dropped"])

    def check(self, context: MatchContext, x: ir.Value, dropped: ir.Value) -> MatchResult:
        node = producer(dropped)
        mode = node.inputs[2] if len(node.inputs) > 2 else None
        is_training = constant_of(mode)
        if mode is not None and (is_training is None or bool(is_training.any())):
            raise Refused("Dropout is, or may be, in training mode")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, dropped: ir.Value) -> Any:
        return x


class DropNeutral(RewriteRuleClassBase):
    """Case 2 for one operator."""

    def __init__(self, op_type: str, *, is_constant_first: bool) -> None:
        super().__init__(f"DropNeutral{op_type}")
        self._op_type, self._is_constant_first = op_type, is_constant_first

    def pattern(self, op: Any, x: Any, operand: Any) -> Any:
        return getattr(op, self._op_type)(*((operand, x) if self._is_constant_first else (x, operand)))

    def check(self, context: MatchContext, x: ir.Value, operand: ir.Value) -> MatchResult:
        if not broadcasts_into(operand, x):
            raise Refused(f"'{operand.name}' may grow the shape of '{x.name}'")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, operand: ir.Value) -> Any:
        return x


def neutral_rule(op_type: str, element: int, is_constant_first: bool) -> RewriteRule:
    """Case 2 for one operator, matched only where the operand is its neutral element throughout."""

    def is_neutral(value: ir.Value | None) -> bool:
        array = constant_of(value)
        return array is not None and array.dtype.kind not in "OSU" and bool((array == element).all())

    rule = DropNeutral(op_type, is_constant_first=is_constant_first)
    return rule_of(rule, matcher=functools.partial(OperandMatcher, accepts=is_neutral))


REMOVE_TRAINING_LEFTOVERS = RulePass(
    "remove-training-leftovers",
    [rule_of(DropDropout()), *(neutral_rule(*case) for case in NEUTRAL)],
)
