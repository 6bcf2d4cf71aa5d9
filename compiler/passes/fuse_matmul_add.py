"""MatMul + Add of matrices → Gemm, with transposes of the operands inside.

    A·B + c  →  Gemm(A, B, c)        Aᵀ·B + c  →  Gemm(A, B, c, transA=1)        A·Bᵀ + c  →  Gemm(A, B, c, transB=1)

A and B have rank 2 and a floating-point type; c is (M,), (1, M) or certainly (N, M). Batched products, as in
attention, stay MatMul.
"""

from __future__ import annotations

import itertools
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase

from compiler.passes.matching import FLOATS, Refused, rank_of, rule_of, same_dims
from compiler.passes.rules import RulePass


class MatMulAddToGemm(RewriteRuleClassBase):
    """The rule for one combination of transposed operands; the most transposed one is tried first."""

    def __init__(self, is_a_transposed: bool, is_b_transposed: bool) -> None:
        super().__init__(f"MatMulAddToGemm{'TransA' * is_a_transposed}{'TransB' * is_b_transposed}")
        self._is_a_transposed, self._is_b_transposed = is_a_transposed, is_b_transposed

    def pattern(self, op: Any, a: Any, b: Any, c: Any) -> Any:
        left = op.Transpose(a, _outputs=["left"]) if self._is_a_transposed else a
        right = op.Transpose(b, _outputs=["right"]) if self._is_b_transposed else b
        return op.Add(op.MatMul(left, right), c)

    def check(
        self, context: MatchContext, a: ir.Value, b: ir.Value, c: ir.Value, left: Any = None, right: Any = None
    ) -> MatchResult:
        ranks = rank_of(a), rank_of(b)
        if ranks != (2, 2):
            raise Refused(f"the operands of MatMul have ranks {ranks}, not 2")
        if b.dtype not in FLOATS and a.dtype not in FLOATS:
            raise Refused("the product is not known to be of a floating-point type")
        _require_bias(c, self._dims(a, b))
        return MatchResult()

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, c: ir.Value, left: Any = None, right: Any = None) -> Any:
        transposed = {"transA": self._is_a_transposed, "transB": self._is_b_transposed}
        return op.Gemm(a, b, c, **{name: 1 for name, is_set in transposed.items() if is_set})

    def _dims(self, a: ir.Value, b: ir.Value) -> tuple[int | ir.SymbolicDim, int | ir.SymbolicDim]:
        if a.shape is None or b.shape is None:
            raise Refused("the shape of an operand is unknown")
        return a.shape[1 if self._is_a_transposed else 0], b.shape[0 if self._is_b_transposed else 1]


def _require_bias(c: ir.Value, dims: tuple[int | ir.SymbolicDim, int | ir.SymbolicDim]) -> None:
    shape = c.shape
    if shape is None or shape.rank() not in (1, 2):
        raise Refused(f"'{c.name}' is not known to be a row or a matrix")
    if not same_dims(shape[-1], dims[1]) or (shape.rank() == 2 and shape[0] != 1 and not same_dims(shape[0], dims[0])):
        raise Refused(f"'{c.name}' of shape {shape} is not known to fit the product's [{dims[0]}, {dims[1]}]")


FUSE_MATMUL_ADD = RulePass(
    "fuse-matmul-add",
    [rule_of(MatMulAddToGemm(*case)) for case in itertools.product((True, False), repeat=2)],
    commute=True,
)
