"""Scaled dot-product attention spelled out → Attention (opset 23).

    Softmax(s·Q·Kᵀ [+ mask])·V  →  Attention(Q, K, V, mask, scale=s)

with Q, K, V of rank 4 (batch, heads, length, size) and the same batch and heads; s is a factor, a divisor or absent,
and positive, as ONNX Runtime refuses any other scale; a mask has the lengths of Q and K in full, as ONNX Runtime wants;
K is transposed in its last two dimensions, alone or together with others, which then stay a Transpose.
Below opset 23 nothing is done and the reason noted: runtimes recognize the spelled-out form themselves.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase

from compiler.passes.matching import (
    Refused,
    producer,
    rank_of,
    require_no_growth,
    require_opset,
    rule_of,
    same_dims,
)
from compiler.passes.rules import RulePass
from compiler.passes.values import scalar_of

ATTENTION_OPSET = 23

SCALINGS = ("", "Mul", "Div")


class FuseAttention(RewriteRuleClassBase):
    """The rule for one kind of scaling, with or without a mask."""

    def __init__(self, scaling: str, has_mask: bool) -> None:
        super().__init__(f"FuseAttention{scaling}{'Mask' * has_mask}")
        self._scaling, self._has_mask = scaling, has_mask

    def pattern(self, op: Any, q: Any, k: Any, v: Any, scale: Any, mask: Any) -> Any:
        scores = op.MatMul(q, op.Transpose(k, _outputs=["swapped"]))
        if self._scaling:
            scores = getattr(op, self._scaling)(scores, scale)
        if self._has_mask:
            scores = op.Add(scores, mask)
        return op.MatMul(op.Softmax(scores, _outputs=["weights"]), v)

    def check(
        self,
        context: MatchContext,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        swapped: ir.Value,
        weights: ir.Value,
        scale: Any = None,
        mask: Any = None,
    ) -> MatchResult:
        require_opset(context, ATTENTION_OPSET, "Attention")
        if any(rank_of(value) != 4 for value in (q, k, v)):
            raise Refused("Q, K and V are not all known to have rank 4")
        if producer(weights).attributes.get_int("axis", -1) not in (-1, 3):
            raise Refused("Softmax does not run over the keys")
        key_dims = _key_dims(k, producer(swapped))
        _require_same_heads(q, key_dims, v)
        if self._scaling:
            self._factor(scale)
        if mask is not None:
            _require_mask(mask, q, v)
        return MatchResult()

    def rewrite(
        self,
        op: Any,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        swapped: ir.Value,
        weights: ir.Value,
        scale: Any = None,
        mask: Any = None,
    ) -> Any:
        order = _key_order(producer(swapped))
        key = k if order == (0, 1, 2, 3) else op.Transpose(k, perm=order)
        return op.Attention(q, key, v, *([mask] if mask is not None else []), scale=self._factor(scale))

    def _factor(self, scale: ir.Value | None) -> float:
        if not self._scaling or scale is None:
            return 1.0
        number = scalar_of(scale)
        if number is None:
            raise Refused("the scale of the scores is not a constant number")
        factor = number if self._scaling == "Mul" else 1.0 / number if number else math.inf
        if not 0.0 < factor < math.inf:
            raise Refused(f"the scale of the scores is {factor:g}, and Attention takes a positive one")
        require_no_growth(scale, 4)
        return factor


def _key_order(transpose: ir.Node) -> tuple[int, ...]:
    """How K's dimensions must be permuted to (batch, heads, length, size): the node's own order, last two swapped."""
    order = tuple(transpose.attributes.get_ints("perm", ()))
    if len(order) != 4:
        raise Refused("the transposition of K is not known")
    return order[0], order[1], order[3], order[2]


def _key_dims(k: ir.Value, transpose: ir.Node) -> list[int | ir.SymbolicDim]:
    order = _key_order(transpose)
    return [] if k.shape is None else [k.shape[axis] for axis in order]


def _require_same_heads(q: ir.Value, key_dims: list[int | ir.SymbolicDim], v: ir.Value) -> None:
    if q.shape is None or v.shape is None or not key_dims:
        raise Refused("a shape is unknown")
    for name, ours, others in zip(("batch", "heads"), q.shape, zip(key_dims, v.shape, strict=True), strict=False):
        if not all(same_dims(ours, other) for other in others):
            raise Refused(f"Q, K and V are not known to have the same {name}")
    if not same_dims(key_dims[2], v.shape[2]):
        raise Refused("K and V are not known to have the same length")


def _require_mask(mask: ir.Value, q: ir.Value, v: ir.Value) -> None:
    if mask.shape is None or q.shape is None or v.shape is None or mask.shape.rank() not in (2, 3, 4):
        raise Refused("the mask is not known to have rank 2 to 4")
    wanted = [*q.shape[:3], v.shape[2]]
    for place, (mine, other) in enumerate(zip(reversed(list(mask.shape)), reversed(wanted), strict=False)):
        if not same_dims(mine, other) and (mine != 1 or place < 2):
            raise Refused(f"the mask {mask.shape} is not known to fit the scores {wanted}")
    if mask.dtype != q.dtype:
        raise Refused("the mask is not of the type of Q")


FUSE_ATTENTION = RulePass(
    "fuse-attention",
    [rule_of(FuseAttention(scaling, has_mask)) for scaling in SCALINGS for has_mask in (True, False)],
    commute=True,
)
