"""Fits the float model to its quantized form: compensated rounding of weights, and bias correction.

One walk does both. Each layer is fitted with the layers before it already quantized and fitted: first its weights
(compensate.py), then its bias takes up the remaining mean error (correct.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.compensate import MOST_TERMS, compensate
from compiler.compress.quant.constants import give_constant
from compiler.compress.quant.correct import bias_axis, estimate_shift
from compiler.compress.quant.options import QuantOptions
from compiler.compress.quant.plan import QuantPlan
from compiler.compress.quant.unfold import find_layout
from compiler.compress.quant.walk import Step, can_walk, walk
from compiler.model.numerics import Array, Arrays
from compiler.passes.values import Names, constant_of

_WEIGHT, _BIAS = 1, 2
"""Inputs of a Conv, Gemm or MatMul."""


def fit(model: ir.Model, plan: QuantPlan, batches: Sequence[Arrays], options: QuantOptions) -> ir.Model:
    """A copy of the model with weights and biases fitted to the quantized form.

    Args:
        model: The float model; left as it is.
        plan: What will be quantized.
        batches: Calibration inputs; the more samples, the less noise.
        options: What is fitted.

    Returns:
        The copy; unchanged where the graph has subgraphs, or nothing shall be fitted.
    """
    copy = model.clone()
    if not can_walk(copy) or not (options.correct or options.compensate):
        return copy
    constants: list[tuple[ir.Node, int, NDArray[np.float32]]] = []
    for step in walk(copy, plan, batches):
        if options.compensate and (weight := _fitted_weight(step, plan)) is not None:
            step.compute_with(weight, _WEIGHT)
            constants.append((step.node, _WEIGHT, weight))
        if options.correct and (bias := _fitted_bias(step, plan)) is not None:
            constants.append((step.node, _BIAS, bias))
    names = Names(copy)
    # after the walk: it reads the model's own constants until the end
    for node, index, array in constants:
        give_constant(copy, node, index, array, names)
    return copy


def _fitted_weight(step: Step, plan: QuantPlan) -> NDArray[np.float32] | None:
    """Weights rounded to the least error of the layer's results; None where it has no weights of its own."""
    quant = plan.weights.get(f"{step.node.name}/{_WEIGHT}")
    value = step.node.inputs[_WEIGHT] if quant else None
    weight = constant_of(value)
    if quant is None or value is None or weight is None or len(value.uses()) > 1 or not step.low:
        return None
    layout = find_layout(step.node, weight.shape)
    if isinstance(layout, str) or layout.terms > MOST_TERMS:
        return None
    read = str(step.node.inputs[0].name)  # type: ignore[union-attr]  # a product reads two values
    return compensate(weight.astype(np.float32), quant, layout, [feeds[read] for feeds in step.low])


def _fitted_bias(step: Step, plan: QuantPlan) -> NDArray[np.float32] | None:
    """The bias that removes the layer's mean error, also from `step`; None where the layer cannot have a plain bias."""
    axis = bias_axis(step.node)
    if axis is None or f"{step.node.name}/{_WEIGHT}" not in plan.weights:
        return None
    shift = estimate_shift(step.expected, step.found, axis)
    shape = [1] * step.found[0].ndim
    shape[axis] = -1
    step.found = [array.astype(np.float32) + shift.astype(np.float32).reshape(shape) for array in step.found]
    before: Array | None = constant_of(step.node.inputs[_BIAS]) if len(step.node.inputs) > _BIAS else None
    after = shift if before is None else before.astype(np.float64) + shift
    return after.astype(np.float32)
