"""Fits the float model to its quantized form: compensated rounding of weights, and bias correction.

One walk does both. Each layer is fitted with the layers before it already quantized and fitted: first its weights
(compensate.py), then its bias takes up the remaining mean error (correct.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.compensate import MOST_TERMS, Factor, compensate, factorize
from compiler.compress.quant.constants import give_constant
from compiler.compress.quant.correct import bias_axis, estimate_shift
from compiler.compress.quant.options import QuantOptions
from compiler.compress.quant.plan import QuantPlan, TensorQuant
from compiler.compress.quant.unfold import Layout, find_layout
from compiler.compress.quant.walk import Step, can_walk, walk
from compiler.compress.threads import one_blas_thread
from compiler.model.numerics import Array, Arrays
from compiler.passes.values import Names, constant_of

_WEIGHT, _BIAS = 1, 2
"""Inputs of a Conv, Gemm or MatMul."""

_NEGLIGIBLE = 2.0**-24
"""Share of a layer's largest result below which a shift is no error that can be corrected."""


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
    with one_blas_thread():
        constants = list(_fitted_constants(copy, plan, batches, options))
    names = Names(copy)
    # after the walk: it reads the model's own constants until the end
    for node, index, array in constants:
        give_constant(copy, node, index, array, names)
    return copy


def _fitted_constants(
    model: ir.Model, plan: QuantPlan, batches: Sequence[Arrays], options: QuantOptions
) -> Iterator[tuple[ir.Node, int, NDArray[np.float32]]]:
    """Node, index of the input, and the fitted constant."""
    factors = _Factors(model, plan)
    for step in walk(model, plan, batches):
        if options.compensate and (weight := _fitted_weight(step, plan, factors)) is not None:
            step.compute_with(weight, _WEIGHT)
            yield step.node, _WEIGHT, weight
        if options.correct and (bias := _fitted_bias(step, plan)) is not None:
            yield step.node, _BIAS, bias


_Key = tuple[str, TensorQuant | None, Hashable]
"""Name of what a layer reads, how it is rounded there, and how its rows are taken from it."""


class _Factors:
    """Factors of what layers read, each computed once and dropped after its last layer.

    Args:
        model: The layers' model.
        plan: Of the quantized model.
    """

    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self._plan = plan
        layers = ((node, _layout_of(node, plan)) for node in model.graph)
        self._uses = Counter(self._key(node, layout) for node, layout in layers if layout is not None)
        self._factors: dict[_Key, Factor] = {}

    def of(self, step: Step, layout: Layout) -> Factor:
        """The factor of what a layer reads."""
        key = self._key(step.node, layout)
        factor = self._factors.pop(key, None)
        if factor is None:
            factor = factorize(layout, [feeds[key[0]] for feeds in step.low])
        self._uses[key] -= 1
        if self._uses[key]:
            self._factors[key] = factor
        return factor

    def _key(self, node: ir.Node, layout: Layout) -> _Key:
        name = str(node.inputs[0].name)  # type: ignore[union-attr]  # a product reads two values
        is_rounded = 0 in self._plan.reads.get(str(node.name), ())
        return name, self._plan.tensors[name] if is_rounded else None, layout.key


def _layout_of(node: ir.Node, plan: QuantPlan) -> Layout | None:
    """The layout of a layer that is compensated; None where it has no weights of its own, or is none that can be."""
    value = node.inputs[_WEIGHT] if f"{node.name}/{_WEIGHT}" in plan.weights else None
    weight = constant_of(value)
    if value is None or weight is None or len(value.uses()) > 1:
        return None
    layout = find_layout(node, weight.shape)
    return None if isinstance(layout, str) or layout.terms > MOST_TERMS else layout


def _fitted_weight(step: Step, plan: QuantPlan, factors: _Factors) -> NDArray[np.float32] | None:
    """Weights rounded to the least error of the layer's results; None where they are not compensated."""
    layout = _layout_of(step.node, plan)
    weight = constant_of(step.node.inputs[_WEIGHT]) if layout is not None else None
    if layout is None or weight is None or not step.low:
        return None
    quant = plan.weights[f"{step.node.name}/{_WEIGHT}"]
    return compensate(weight.astype(np.float32), quant, layout, factors.of(step, layout))


def _fitted_bias(step: Step, plan: QuantPlan) -> NDArray[np.float32] | None:
    """The bias that removes the layer's mean error, also from `step`; None where the layer cannot have a plain bias."""
    axis = bias_axis(step.node)
    if axis is None or f"{step.node.name}/{_WEIGHT}" not in plan.weights:
        return None
    shift = estimate_shift(step.expected, step.found, axis)
    largest = max((float(np.abs(array).max(initial=0.0)) for array in step.expected), default=0.0)
    # what float32 would round away: a bias of such numbers alone is none that float16 can hold
    shift[np.abs(shift) < _NEGLIGIBLE * largest] = 0.0
    if not shift.any():
        return None
    shape = [1] * step.found[0].ndim
    shape[axis] = -1
    step.replace([array.astype(np.float32) + shift.astype(np.float32).reshape(shape) for array in step.found])
    before: Array | None = constant_of(step.node.inputs[_BIAS]) if len(step.node.inputs) > _BIAS else None
    after = shift if before is None else before.astype(np.float64) + shift
    return after.astype(np.float32)
