"""Biases that make up for what quantization shifts, layer after layer.

A layer in few bits, fed by layers in few bits, is off by some mean per output channel: δ = E[y] − E[ŷ] over samples and
places (M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2).
Adding δ to its bias takes that part of the error away, and later layers are corrected with it in place. An estimate
from few samples is noise where its standard error is as large as itself, so δ is shrunk by max(0, 1 − error²/δ²).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.numerics import Array, Arrays
from compiler.passes.values import Names, constant_of, replace_input
from compiler.quant.plan import QuantPlan
from compiler.quant.walk import can_walk, walk

_BIASED = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1}
"""Operator with a bias as third input → the dimension of its result that the bias goes along."""

Float64s = NDArray[np.float64]


def correct_biases(model: ir.Model, plan: QuantPlan, batches: Sequence[Arrays]) -> ir.Model:
    """A copy of the model whose biases suit its quantized form.

    Args:
        model: The float model; left as it is.
        plan: What will be quantized.
        batches: Calibration inputs; the more samples, the less noise.

    Returns:
        The copy; unchanged where the graph has subgraphs.
    """
    copy = model.clone()
    if not can_walk(copy):
        return copy
    names = Names(copy)
    low = {key.rsplit("/", 1)[0] for key in plan.weights}
    shifts: list[tuple[ir.Node, Float64s]] = []
    for step in walk(copy, plan, batches):
        axis = _BIASED.get(step.node.op_type)
        if axis is None or step.node.name not in low or not _has_plain_bias(step.node):
            continue
        shift = estimate_shift(step.expected, step.found, axis)
        shape = [1] * step.found[0].ndim
        shape[axis] = -1
        moved = shift.astype(np.float32).reshape(shape)
        step.found = [array.astype(np.float32) + moved for array in step.found]
        shifts.append((step.node, shift))
    for node, shift in shifts:
        _add_to_bias(copy, node, shift, names)
    return copy


def estimate_shift(expected: Sequence[Array], found: Sequence[Array], axis: int) -> Float64s:
    """The mean difference per channel (C,), shrunk by how little is known of it."""
    rows = [
        _per_sample(want.astype(np.float64) - got.astype(np.float64), axis)
        for want, got in zip(expected, found, strict=True)
    ]
    differences = np.concatenate(rows)
    mean: Float64s = differences.mean(axis=0)
    if len(differences) < 2:
        return np.zeros_like(mean)
    error = differences.var(axis=0, ddof=1) / len(differences)
    shrink = np.maximum(0.0, 1.0 - error / np.maximum(np.square(mean), np.finfo(np.float64).tiny))
    found_shift: Float64s = mean * shrink
    return found_shift


def _per_sample(array: Float64s, axis: int) -> Float64s:
    """Means (samples, C) over everything but samples and channels."""
    channels = np.moveaxis(array, axis, -1)
    means: Float64s = channels.reshape(channels.shape[0], -1, channels.shape[-1]).mean(axis=1)
    return means


def _has_plain_bias(node: ir.Node) -> bool:
    """Whether its bias is missing or a constant vector, added as it is."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1.0:
        return False
    array = constant_of(bias)
    return bias is None or (array is not None and array.ndim == 1 and array.size > 1)


def _add_to_bias(model: ir.Model, node: ir.Node, shift: Float64s, names: Names) -> None:
    old = node.inputs[2] if len(node.inputs) > 2 else None
    before = constant_of(old)
    after = (shift if before is None else before.astype(np.float64) + shift).astype(np.float32)
    wish = f"{node.name}_bias" if old is None else f"{old.name}_corrected"
    name = names.fresh(wish)
    tensor = ir.tensor(after, name=name)
    value = ir.Value(name=name, shape=ir.Shape(after.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    replace_input(node, 2, value)
    if old is not None and old.producer() is None and not old.uses() and not old.is_graph_output():
        model.graph.initializers.pop(str(old.name), None)
