"""Layer normalization spelled out → LayerNormalization (opset 17).

With d = x − mean(x), means over the last dimensions with keepdims, and v = mean(d²):

1. d / √(v + ε), d·(1/√(v + ε))      → LayerNormalization(x, ones), where the sizes of these dimensions are known
2. LayerNormalization(x, ones)·g     → LayerNormalization(x, g), where g has the normalized shape
3. LayerNormalization(x, g) + b      → LayerNormalization(x, g, b), likewise

d² is d·d or Pow(d, 2); axes are attributes before opset 18 and inputs after. float64 is left alone: the operator
computes in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase
from onnxscript.rewriter.pattern import OrValue

from compiler.passes.matching import (
    Refused,
    producer,
    rank_of,
    require_no_growth,
    require_opset,
    require_scalar,
    rule_of,
)
from compiler.passes.rules import RulePass
from compiler.passes.values import constant_of, display_name, scalar_of

LAYER_NORMALIZATION_OPSET = 17
TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class FuseNormalization(RewriteRuleClassBase):
    """Case 1, dividing or multiplying."""

    def __init__(self, is_division: bool) -> None:
        super().__init__("FuseNormalizationDiv" if is_division else "FuseNormalizationMul")
        self._is_division = is_division

    def pattern(self, op: Any, x: Any, epsilon: Any, two: Any) -> Any:
        deviation = op.Sub(x, op.ReduceMean(x, _allow_other_inputs=True, _outputs=["mean"]))
        square = OrValue([op.Mul(deviation, deviation), op.Pow(deviation, two)])
        spread = op.Sqrt(op.Add(op.ReduceMean(square, _allow_other_inputs=True, _outputs=["variance"]), epsilon))
        return op.Div(deviation, spread) if self._is_division else op.Mul(deviation, op.Reciprocal(spread))

    def check(
        self, context: MatchContext, x: ir.Value, epsilon: ir.Value, two: Any, mean: ir.Value, variance: ir.Value
    ) -> MatchResult:
        require_opset(context, LAYER_NORMALIZATION_OPSET, "LayerNormalization")
        if x.dtype not in TYPES:
            raise Refused(f"'{x.name}' has type {x.dtype}: LayerNormalization computes in float32")
        if two is not None:
            require_scalar(two, 2.0, "the exponent", rank=rank_of(x))
        if scalar_of(epsilon) is None:
            raise Refused("what is added to the variance is not a constant number")
        require_no_growth(epsilon, rank_of(x))
        if _first_axis(producer(mean), x) != _first_axis(producer(variance), x):
            raise Refused("mean and variance are taken over different dimensions")
        _normalized_shape(x, _first_axis(producer(mean), x))
        return MatchResult()

    def rewrite(
        self, op: Any, x: ir.Value, epsilon: ir.Value, mean: ir.Value, variance: ir.Value, two: Any = None
    ) -> Any:
        axis = _first_axis(producer(mean), x)
        ones = np.ones(_normalized_shape(x, axis), (x.dtype or ir.DataType.FLOAT).numpy())
        scale = op.initializer(ir.tensor(ones), name=f"{display_name(producer(mean))}.scale")
        return op.LayerNormalization(x, scale, axis=axis, epsilon=scalar_of(epsilon))


class AbsorbScale(RewriteRuleClassBase):
    """Case 2."""

    def pattern(self, op: Any, x: Any, ones: Any, scale: Any) -> Any:
        return op.Mul(op.LayerNormalization(x, ones, _outputs=["normalized"]), scale)

    def check(
        self, context: MatchContext, x: ir.Value, ones: ir.Value, scale: ir.Value, normalized: ir.Value
    ) -> MatchResult:
        array = constant_of(ones)
        if array is None or not bool((array == 1).all()):
            raise Refused("LayerNormalization has a scale already")
        _require_shape(scale, array.shape)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, ones: ir.Value, scale: ir.Value, normalized: ir.Value) -> Any:
        return op.LayerNormalization(x, scale, **producer(normalized).attributes)


class AbsorbShift(RewriteRuleClassBase):
    """Case 3."""

    def pattern(self, op: Any, x: Any, scale: Any, shift: Any) -> Any:
        return op.Add(op.LayerNormalization(x, scale, _outputs=["normalized"]), shift)

    def check(
        self, context: MatchContext, x: ir.Value, scale: ir.Value, shift: ir.Value, normalized: ir.Value
    ) -> MatchResult:
        if scale.shape is None or not scale.shape.is_static():
            raise Refused(f"the shape of '{scale.name}' is unknown")
        _require_shape(shift, scale.shape.numpy())
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, shift: ir.Value, normalized: ir.Value) -> Any:
        return op.LayerNormalization(x, scale, shift, **producer(normalized).attributes)


def _first_axis(reduction: ir.Node, x: ir.Value) -> int:
    """The first of the dimensions that a ReduceMean takes, counted from the end, if they are the last ones."""
    if not reduction.attributes.get_int("keepdims", 1):
        raise Refused("the mean does not keep its dimensions")
    axes_value = reduction.inputs[1] if len(reduction.inputs) > 1 else None
    axes = reduction.attributes.get_ints("axes", None) if axes_value is None else constant_of(axes_value)
    rank = rank_of(x)
    if axes is None or rank is None or len(axes) == 0:
        raise Refused("the dimensions of the mean are not known")
    counted = sorted(int(axis) % rank - rank for axis in axes)
    if counted != list(range(-len(counted), 0)):
        raise Refused(f"the mean is taken over dimensions {[int(axis) for axis in axes]}, not over the last ones")
    return counted[0]


def _normalized_shape(x: ir.Value, axis: int) -> tuple[int, ...]:
    dims = [] if x.shape is None else list(x.shape)[axis:]
    if not dims or not all(isinstance(dim, int) for dim in dims):
        raise Refused(f"the normalized dimensions of '{x.name}' have no known size")
    return tuple(dim for dim in dims if isinstance(dim, int))


def _require_shape(value: ir.Value, shape: tuple[int, ...]) -> None:
    array = constant_of(value)
    known = value.shape.numpy() if value.shape is not None and value.shape.is_static() else None
    mine = tuple(array.shape) if array is not None else known
    if mine != tuple(shape):
        raise Refused(f"'{value.name}' has shape {mine}, not the normalized {tuple(shape)}")


FUSE_LAYER_NORMALIZATION = RulePass(
    "fuse-layer-normalization",
    [rule_of(rule) for rule in (FuseNormalization(True), FuseNormalization(False), AbsorbScale(), AbsorbShift())],
    commute=True,
)
