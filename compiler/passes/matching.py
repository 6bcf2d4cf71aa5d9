"""Questions that the checks of fusions ask; a check that fails raises `Refused` with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRule, RewriteRuleClassBase
from onnxscript.rewriter._basics import MatchFailureError as Refused
from onnxscript.rewriter.pattern import PatternMatcher, SimplePatternMatcher

from compiler.passes.values import constant_of, constant_tensor, scalar_of

__all__ = [
    "FLOATS",
    "OperandMatcher",
    "Refused",
    "broadcasts_into",
    "is_known",
    "producer",
    "rank_of",
    "require_no_growth",
    "require_opset",
    "require_scalar",
    "rule_of",
    "same_dims",
]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})

SCALAR_TOLERANCE = 1e-3
"""Relative: constants of a formula were rounded by exporters, at worst to float16."""


def producer(value: ir.Value) -> ir.Node:
    """The node that computes a matched value."""
    node = value.producer()
    if node is None:
        raise Refused(f"no node computes '{value.name}'")
    return node


def rank_of(value: ir.Value | None) -> int | None:
    """The rank of a value, or None if unknown."""
    return None if value is None or value.shape is None else value.shape.rank()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant: no initializer that is also a graph input."""
    return constant_tensor(value) is not None


class OperandMatcher(SimplePatternMatcher):
    """Matches only where the pattern's variable `operand` is accepted: the sum of two activations is no near miss.

    Args:
        pattern: What onnxscript makes of the rule's pattern.
        accepts: Judges the operand.
    """

    def __init__(self, pattern: Any, accepts: Callable[[ir.Value | None], bool] = is_constant) -> None:
        super().__init__(pattern)
        self._accepts = accepts

    def match(self, *args: Any, **kwargs: Any) -> MatchResult:
        """The match, failed if the operand is not accepted."""
        result: MatchResult = super().match(*args, **kwargs)
        if result and not self._accepts(result.bindings.get("operand")):
            return result.fail("the operand is of another kind")
        return result


def rule_of(rule: RewriteRuleClassBase, *, matcher: Callable[..., PatternMatcher] | None = None) -> RewriteRule:
    """The rule a class describes, with its type kept."""
    return RewriteRule(rule.pattern, rule.rewrite, rule.check, matcher, name=rule.name)


def require_opset(context: MatchContext, version: int, operator: str) -> None:
    """Raises Refused unless the model's opset has the operator."""
    have = context.model.graph.opset_imports.get("", 0)
    if have < version:
        raise Refused(f"{operator} needs opset {version}; the model has {have}")


def require_scalar(value: ir.Value | None, expected: float, role: str, *, rank: int | None = None) -> None:
    """Raises Refused unless the value is a constant of one element near `expected` that adds no dimensions.

    Args:
        value: What is checked.
        expected: The number of the formula.
        role: What the constant is, for the reason.
        rank: Rank of the tensor it is combined with; None if unknown.
    """
    number = scalar_of(value)
    if number is None or value is None:
        raise Refused(f"{role} is not a constant number")
    if abs(number - expected) > SCALAR_TOLERANCE * abs(expected):
        raise Refused(f"{role} is {number:.6g}, not {expected:.6g}")
    require_no_growth(value, rank)


def require_no_growth(value: ir.Value, rank: int | None) -> None:
    """Raises Refused if a constant of one element has more dimensions than what it is combined with."""
    array = constant_of(value)
    if array is not None and array.ndim > (0 if rank is None else rank):
        raise Refused(f"'{value.name}' of shape {list(array.shape)} may add dimensions")


def is_known(dim: int | ir.SymbolicDim) -> TypeGuard[int | ir.SymbolicDim]:
    """Whether a dimension has a number or a name."""
    return isinstance(dim, int) or dim.value is not None


def same_dims(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are certainly equal: the same number, or the same name."""
    return is_known(first) and is_known(second) and first == second


def broadcasts_into(value: ir.Value, target: ir.Value) -> bool:
    """Whether `value` certainly broadcasts to the shape of `target` without changing it."""
    array = constant_of(value)
    shape = value.shape if array is None else ir.Shape(array.shape)
    if shape is None:
        return False
    if target.shape is None or shape.rank() > target.shape.rank():
        return shape.rank() == 0
    wanted = list(target.shape)[target.shape.rank() - shape.rank() :]
    return all(mine == 1 or same_dims(mine, other) for mine, other in zip(shape, wanted, strict=True))
