"""Folds Mul, Div, Add and Sub by per-channel constants into the Conv, ConvTranspose, Gemm or MatMul before them.

1. y·s, s·y        scale s
2. y / d           scale 1/d
3. y + t, t + y    shift t
4. y − t           shift −t
5. t − y           scale −1, shift t

with y the output of a layer; the algebra is case 1 of `absorb.py`. The constant has any shape that broadcasts one
number per channel: for a Conv (C, 1, 1), (1, C, 1, 1) or a scalar, for Gemm and MatMul (C,), (1, C) or a scalar.
A MatMul of rank 2 with a shift becomes a Gemm.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from compiler.passes.absorb import (
    LAYERS,
    Affine,
    affine_of,
    fold_after,
    output_channels,
    output_layout,
    per_channel,
    rebuild,
)
from compiler.passes.matching import OperandMatcher, producer, rule_of
from compiler.passes.rules import RulePass

CASES = (("Mul", False), ("Mul", True), ("Div", False), ("Add", False), ("Add", True), ("Sub", False), ("Sub", True))
"""Operator, and whether the constant is its first operand."""


class AbsorbAffineAfter(RewriteRuleClassBase):
    """Cases 1 to 5 for one kind of layer and one operator."""

    def __init__(self, layer: str, op_type: str, is_constant_first: bool) -> None:
        super().__init__(f"Absorb{op_type}After{layer}")
        self._layer, self._op_type, self._is_constant_first = layer, op_type, is_constant_first

    def pattern(self, op: Any, x: Any, operand: Any) -> Any:
        layer = getattr(op, self._layer)(x, _allow_other_inputs=True, _outputs=["layer_out"])
        operands = (operand, layer) if self._is_constant_first else (layer, operand)
        return getattr(op, self._op_type)(*operands)

    def check(self, context: Any, x: ir.Value, operand: ir.Value, layer_out: ir.Value) -> MatchResult:
        self._affine(operand, producer(layer_out))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, operand: ir.Value, layer_out: ir.Value) -> ir.Value:
        layer = producer(layer_out)
        return rebuild(op, layer, x, fold_after(layer, self._affine(operand, layer)))

    def _affine(self, operand: ir.Value, layer: ir.Node) -> Affine:
        rank, axis = output_layout(layer)
        numbers = per_channel(operand, channels=output_channels(layer), rank=rank, axis=axis)
        return affine_of(self._op_type, numbers, is_constant_first=self._is_constant_first)


FUSE_CONV_AFFINE = RulePass(
    "fuse-conv-affine",
    [rule_of(AbsorbAffineAfter(layer, *case), matcher=OperandMatcher) for layer in LAYERS for case in CASES],
)
