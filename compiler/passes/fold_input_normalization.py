"""Folds Mul, Div, Add and Sub by per-channel constants into the Conv after them: (x − mean) / std → Conv.

The algebra is case 2 of `absorb.py`. A scale folds into any Conv. A shift folds only where the Conv does not pad:
padding zeros are put in after the shift, so near the border the folded bias would count a shift that was not there.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from compiler.passes.absorb import Folded, affine_of, fold_before, input_channels, per_channel, rebuild
from compiler.passes.matching import Refused, producer, rank_of, rule_of, same_dims
from compiler.passes.rules import RulePass
from compiler.passes.values import constant_tensor

OPERATORS = ("Mul", "Div", "Add", "Sub")


class AbsorbAffineBefore(RewriteRuleClassBase):
    """One arithmetic operator with a constant operand → Conv."""

    def __init__(self, op_type: str) -> None:
        super().__init__(f"Absorb{op_type}BeforeConv")
        self._op_type = op_type

    def pattern(self, op: Any, first: Any, second: Any) -> Any:
        shifted = getattr(op, self._op_type)(first, second)
        return op.Conv(shifted, _allow_other_inputs=True, _outputs=["conv_out"])

    def check(self, context: Any, first: ir.Value, second: ir.Value, conv_out: ir.Value) -> MatchResult:
        self._folded(first, second, conv_out)
        return MatchResult()

    def rewrite(self, op: Any, first: ir.Value, second: ir.Value, conv_out: ir.Value) -> ir.Value:
        x, folded = self._folded(first, second, conv_out)
        return rebuild(op, producer(conv_out), x, folded)

    def _folded(self, first: ir.Value, second: ir.Value, conv_out: ir.Value) -> tuple[ir.Value, Folded]:
        is_constant_first = constant_tensor(second) is None
        x, operand = (second, first) if is_constant_first else (first, second)
        conv = producer(conv_out)
        channels, rank = input_channels(conv), rank_of(conv.inputs[1])
        numbers = per_channel(operand, channels=channels, rank=rank, axis=1 - (rank or 0))
        _require_same_shape(x, channels, rank)
        return x, fold_before(conv, affine_of(self._op_type, numbers, is_constant_first=is_constant_first))


def _require_same_shape(x: ir.Value, channels: int, rank: int | None) -> None:
    if x.shape is None or rank_of(x) != rank or not same_dims(x.shape[1], channels):
        raise Refused(f"'{x.name}' is not known to have {channels} channels before the constant is broadcast")


FOLD_INPUT_NORMALIZATION = RulePass(
    "fold-input-normalization", [rule_of(AbsorbAffineBefore(op_type)) for op_type in OPERATORS]
)
