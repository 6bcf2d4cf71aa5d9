"""Bias correction: biases that compensate the mean error of quantization, layer by layer.

A layer in few bits, fed by layers in few bits, is off by some mean per output channel: δ = E[y] − E[ŷ] over samples and
places (M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2).
Adding δ to its bias removes that part of the error, and later layers are corrected with it in place. An estimate
from few samples is noise where its standard error is as large as itself, so δ is shrunk by max(0, 1 − error²/δ²).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.model.numerics import Array
from compiler.passes.values import constant_of

_BIASED = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1}
"""Operator with a bias as third input → the dimension of its result that the bias goes along."""

Float64s = NDArray[np.float64]


def bias_axis(node: ir.Node) -> int | None:
    """The dimension of a node's result that its bias goes along; None where it has no plain one, or cannot have."""
    axis = _BIASED.get(node.op_type)
    return axis if axis is not None and _has_plain_bias(node) else None


def estimate_shift(expected: Sequence[Array], quantized: Sequence[Array], axis: int) -> Float64s:
    """The mean difference per channel (C,), shrunk by its standard error."""
    rows = [
        _per_sample(want.astype(np.float64) - got.astype(np.float64), axis)
        for want, got in zip(expected, quantized, strict=True)
    ]
    differences = np.concatenate(rows)
    mean: Float64s = differences.mean(axis=0)
    if len(differences) < 2:
        return np.zeros_like(mean)  # one sample has no standard error
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
