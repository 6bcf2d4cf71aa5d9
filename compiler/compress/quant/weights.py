"""Quantization of weights: scales per tensor, channel or block, and the integers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.place import channel_axis
from compiler.compress.quant.plan import TensorQuant
from compiler.compress.quant.ranges import FLOAT8_MAX, levels_of
from compiler.compress.quant.scales import storable
from compiler.target.scheme import TensorFormat

Float32s = NDArray[np.float32]

_SHRINKS = np.linspace(1.0, 0.6, 17)
"""Factors for the range that 4-bit formats try; at 8 bits the whole range is best."""


def quantize_weight(weight: Float32s, node: ir.Node, format_: TensorFormat, *, compute: str = "fp32") -> TensorQuant:
    """The scales of one constant input, stored in the precision of what is not quantized."""
    axis = channel_axis(node, format_, weight.ndim)
    blocks = format_.block_size if format_.granularity == "block" else 0
    reach = _reach(weight, axis, blocks)
    if format_.dtype.startswith("float8"):
        top = FLOAT8_MAX
    else:
        first, last = levels_of(format_.dtype, narrow=format_.narrow)
        top = float(last if first < 0 else (last + 1) // 2 - 1)
    scale = storable((reach / np.float32(top)).astype(np.float32), compute)
    zero = 0 if format_.dtype.startswith(("int", "float8")) else int(top) + 1
    quant = TensorQuant(format_.dtype, _tuple(scale), zero, axis, blocks, format_.narrow, "largest weight")
    return _least_error(weight, quant, compute) if format_.dtype in ("int4", "uint4") else quant


def _least_error(weight: Float32s, quant: TensorQuant, compute: str) -> TensorQuant:
    """Each scale shrunk to the least squared error of its weights."""
    whole = np.asarray(quant.scale, dtype=np.float32)
    best, least = whole.copy(), np.full(whole.shape, np.inf)
    for shrink in _SHRINKS:
        scale = storable(whole * np.float32(shrink), compute)
        tried = TensorQuant(**{**vars(quant), "scale": _tuple(scale)})
        error = np.square(weight - dequantize(round_weight(weight, tried), tried))
        cost = _sums(error, quant.axis, quant.block_size).reshape(-1)
        better = cost < least
        best[better], least[better] = scale[better], cost[better]
    return TensorQuant(**{**vars(quant), "scale": _tuple(best), "reason": "least squared error of each block"})


def scale_array(quant: TensorQuant, shape: tuple[int, ...]) -> Float32s:
    """The scales as ONNX stores them: (), (C,), or the weight's shape with blocks along the axis."""
    flat = np.asarray(quant.scale, dtype=np.float32)
    if quant.axis is None:
        return flat.reshape(())
    if quant.block_size:
        return flat.reshape(tuple(n // quant.block_size if i == quant.axis else n for i, n in enumerate(shape)))
    return flat


def spread(quant: TensorQuant, shape: tuple[int, ...]) -> Float32s:
    """The scales, to be broadcast against a tensor of that shape."""
    scale = scale_array(quant, shape)
    if quant.axis is None:
        return scale
    if quant.block_size:
        return np.repeat(scale, quant.block_size, axis=quant.axis)
    return scale.reshape([-1 if i == quant.axis else 1 for i in range(len(shape))])


def round_weight(weight: NDArray[Any], quant: TensorQuant) -> NDArray[Any]:
    """The integers (as float32 numbers, or float8) of the nearest representable weights."""
    return nearest(weight / spread(quant, weight.shape), quant)


def nearest(scaled: NDArray[Any], quant: TensorQuant) -> NDArray[Any]:
    """The integers (or float8) nearest to numbers already divided by their scales."""
    if quant.dtype.startswith("float8"):
        narrow: NDArray[Any] = np.clip(scaled, -FLOAT8_MAX, FLOAT8_MAX).astype(ml_dtypes.float8_e4m3fn)
        return narrow
    first, last = levels_of(quant.dtype, narrow=quant.narrow)
    integers: NDArray[Any] = np.clip(np.rint(scaled) + quant.zero_point, first, last)
    return integers


def dequantize(integers: NDArray[Any], quant: TensorQuant) -> Float32s:
    """The weights that the integers represent."""
    values: Float32s = (integers.astype(np.float32) - np.float32(quant.zero_point)) * spread(quant, integers.shape)
    return values


def _reach(weight: Float32s, axis: int | None, blocks: int) -> Float32s:
    """Largest absolute weight of each scale."""
    reach: Float32s = _reduced(np.abs(weight), axis, blocks, np.max)
    return reach


def _sums(array: Float32s, axis: int | None, blocks: int) -> Float32s:
    sums: Float32s = _reduced(array, axis, blocks, np.sum)
    return sums


def _reduced(array: NDArray[Any], axis: int | None, blocks: int, reduce: Any) -> NDArray[Any]:
    if axis is None:
        return np.asarray(reduce(array) if array.size else 0.0, dtype=np.float32)
    if blocks:
        cut = array.reshape(*array.shape[:axis], array.shape[axis] // blocks, blocks, *array.shape[axis + 1 :])
        return np.asarray(reduce(cut, axis=axis + 1))
    return np.asarray(reduce(array, axis=tuple(i for i in range(array.ndim) if i != axis)))


def _tuple(scale: Float32s) -> tuple[float, ...]:
    return tuple(float(number) for number in scale.reshape(-1))
