"""Transposed convolutions as convolutions: every place of a stride by itself, then the places moved between each other.

Along one axis, with stride s, window k and padding p at the beginning: y[o] = Σ_i x[i] · w[o + p − s·i]. With
o + p = s·q + r, 0 ≤ r < s, and T = ⌈k / s⌉ taps:

    y_r[q] = Σ_t x[q − (T − 1) + t] · w[s·(T − 1 − t) + r]        w is zero from k on

So each r is a convolution with T taps, all of them together one convolution with s times as many filters, and y their
results in turn, from p mod s on. Windows that lie side by side have T = 1. (W. Shi et al., Is the deconvolution layer
the same as a convolutional layer?, 2016)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.graph.reading import constant, shape_of

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class _Axis:
    """One axis of a transposed convolution.

    Args:
        stride, window: s and k.
        before, after: Zeros that the convolution reads on both sides.
        begin: Places of the results in turn that are left out at the beginning.
        size: Of the result.
    """

    stride: int
    window: int
    before: int
    after: int
    begin: int
    size: int

    @property
    def taps(self) -> int:
        """Inputs that one result reads, at most."""
        return -(-self.window // self.stride)

    @property
    def places(self) -> int:
        """Results in turn that are computed; a multiple of the stride."""
        return -(-(self.begin + self.size) // self.stride) * self.stride


def convert_transposed(inputs: Sequence[Any], attributes: Attributes) -> Any:
    """The convolution and what moves its results; None where TVM's importer shall convert the node.

    Args:
        inputs: Source (N, C, H, W), weights (C, F, kH, kW), and a bias (F) or nothing.
        attributes: Of the ONNX node.
    """
    parameters, shape = [parameter for parameter in inputs[1:] if parameter is not None], shape_of(inputs[0])
    constants = [array for parameter in parameters if (array := constant(parameter)) is not None]
    if len(constants) < len(parameters) or len(shape) != 4 or not _is_plain(attributes):
        return None
    weights, *biases = constants
    axes = [_axis(place, size, weights.shape[2 + place], attributes) for place, size in enumerate(shape[2:])]
    if any(axis is None for axis in axes):
        return None
    return _converted(inputs[0], weights, biases, [axis for axis in axes if axis is not None])


def _is_plain(attributes: Attributes) -> bool:
    is_dense = attributes.get("group", 1) == 1 and set(attributes.get("dilations", ())) <= {1}
    is_padded = attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", b"NOTSET", b"VALID")
    return is_dense and is_padded and "output_shape" not in attributes


def _axis(place: int, size: int, window: int, attributes: Attributes) -> _Axis | None:
    """An axis of `size` places; None where results lie behind all of them, or before."""
    stride, pads = _of_axis(attributes, "strides", place, 1), [int(value) for value in attributes.get("pads", (0,) * 4)]
    first, last = pads[place], pads[place + len(pads) // 2]
    result = stride * (size - 1) + window - first - last + _of_axis(attributes, "output_padding", place, 0)
    taps = -(-window // stride)
    before, after = taps - 1 - first // stride, (result - 1 + first) // stride - (size - 1)
    if min(result - 1, before, after) < 0:
        return None
    return _Axis(stride, window, before, after, first % stride, result)


def _of_axis(attributes: Attributes, name: str, place: int, default: int) -> int:
    values = attributes.get(name, ())
    return int(values[place]) if len(values) else default


def _converted(source: Any, weights: Array, biases: Sequence[Array], axes: Sequence[_Axis]) -> Any:
    from tvm import relax

    filters, (down, right) = weights.shape[1], axes
    padding = [down.before, right.before, down.after, right.after]
    value = relax.op.nn.conv2d(source, relax.const(_by_place(weights, down, right)), padding=padding)
    for bias in biases:
        value = relax.op.add(value, relax.const(np.repeat(bias, down.stride * right.stride).reshape(1, -1, 1, 1)))
    rows, columns = (axis.places // axis.stride for axis in axes)
    batch = shape_of(source)[0]
    value = relax.op.reshape(value, (batch, filters, down.stride, right.stride, rows, columns))
    value = relax.op.permute_dims(value, [0, 1, 4, 2, 5, 3])
    value = relax.op.reshape(value, (batch, filters, down.places, right.places))
    if all(axis.places == axis.size for axis in axes):
        return value
    begins = [axis.begin for axis in axes]
    return relax.op.strided_slice(value, [2, 3], begins, [axis.begin + axis.size for axis in axes])


def _by_place(weights: Array, down: _Axis, right: _Axis) -> Array:
    """The weights (C, F, kH, kW) as those of the convolution (F · sH · sW, C, tapsH, tapsW)."""
    channels, filters, *_ = weights.shape
    missing = [(0, axis.taps * axis.stride - axis.window) for axis in (down, right)]
    whole = np.pad(weights, [(0, 0), (0, 0), *missing])
    parts = whole.reshape(channels, filters, down.taps, down.stride, right.taps, right.stride)
    turned = parts[:, :, ::-1, :, ::-1].transpose(1, 3, 5, 0, 2, 4)
    return np.ascontiguousarray(turned).reshape(-1, channels, down.taps, right.taps)
