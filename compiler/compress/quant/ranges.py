"""Observers: from a histogram to a range (min-max, percentile, mse, entropy), and from a range to a scale.

- percentile: the narrowest bounds with at most (100 − p)/2 % of the values outside on each side.
- mse: of bounds shrunk by a common factor, those with the least Σ count·(x − dequantize(quantize(x)))².
- entropy: of bounds shrunk likewise, those with the least Kullback-Leibler divergence of the histogram from itself
  rounded to the levels and cut at the bounds (S. Migacz, 8-bit inference with TensorRT, GTC 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from compiler.compress.quant.histogram import Histogram
from compiler.compress.quant.options import QuantOptions
from compiler.compress.quant.plan import TensorQuant
from compiler.compress.quant.scales import storable
from compiler.target.scheme import TensorFormat

SHRINKS = np.geomspace(1.0, 0.05, 64)
"""Factors for the bounds that `mse` and `entropy` try."""

FLOAT8_MAX = 448.0
"""Largest finite number of float8e4m3fn."""

_BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4}

Range = tuple[float, float]


def quantize_tensor(
    seen: Histogram, format_: TensorFormat, options: QuantOptions, *, compute: str = "fp32"
) -> TensorQuant:
    """The scale of one tensor (or of several that share it, with their histograms joined)."""
    if seen.exponent is None or seen.high < seen.low:
        return TensorQuant(format_.dtype, (1.0,), reason="every value observed is 0")
    format_ = _unsigned(format_) if format_.positive and seen.low >= 0.0 else format_
    # float8 has relative precision: a wider range costs small values nothing, so nothing is gained by clipping
    if format_.dtype.startswith("float8"):
        return _of_range((seen.low, seen.high), format_, "largest value observed", compute)
    low, high = find_range(seen, format_, options)
    reason = f"{options.observer} of {seen.low:.4g} to {seen.high:.4g}"
    return _of_range((low, high), format_, reason, compute)


def levels_of(dtype: str, *, narrow: bool) -> tuple[int, int]:
    """Lowest and highest integer of a type."""
    bits = _BITS[dtype]
    if dtype.startswith("u"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def find_range(seen: Histogram, format_: TensorFormat, options: QuantOptions) -> Range:
    """The range chosen by the observer."""
    match options.observer:
        case "min-max":
            return seen.low, seen.high
        case "percentile":
            return _percentile(seen, options.percentile)
        case "mse":
            return _least(seen, format_, _squared_error)
        case "entropy":
            return _least(seen, format_, _divergence)


def _unsigned(format_: TensorFormat) -> TensorFormat:
    return TensorFormat(format_.positive, symmetric=False, granularity=format_.granularity)


def _of_range(bounds: Range, format_: TensorFormat, reason: str, compute: str) -> TensorQuant:
    scale, zero = scale_of(bounds, format_, compute=compute)
    return TensorQuant(format_.dtype, (scale,), zero, narrow=format_.narrow, reason=reason)


def scale_of(bounds: Range, format_: TensorFormat, *, compute: str = "fp32") -> tuple[float, int]:
    """Scale and zero point for a range; 0 is always represented exactly."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if format_.dtype.startswith("float8"):
        return _stored(max(-low, high) / FLOAT8_MAX, compute), 0
    first, last = levels_of(format_.dtype, narrow=format_.narrow)
    if format_.symmetric:
        zero = 0 if first < 0 else (first + last + 1) // 2
        return _stored(max(-low, high) / (last - zero), compute), zero
    scale = _stored((high - low) / (last - first), compute)
    return scale, int(np.clip(round(first - low / scale), first, last))


def _stored(scale: float, compute: str) -> float:
    return float(storable(np.array([scale], np.float32), compute)[0])


def _percentile(seen: Histogram, percentile: float) -> Range:
    counts = seen.counts.copy()
    counts[counts.size // 2] += seen.zeros
    share = np.cumsum(counts) / counts.sum()
    tail = (100.0 - percentile) / 200.0
    width = 2.0 ** (seen.exponent or 0)
    low = float(seen.centers[np.searchsorted(share, tail, side="right")] - width / 2)
    high = float(seen.centers[min(int(np.searchsorted(share, 1.0 - tail)), counts.size - 1)] + width / 2)
    return max(low, seen.low), min(high, seen.high)


def _least(seen: Histogram, format_: TensorFormat, cost: Callable[[Histogram, Range, TensorFormat], float]) -> Range:
    tried = [(seen.low * shrink, seen.high * shrink) for shrink in SHRINKS]
    return min(tried, key=lambda bounds: cost(seen, bounds, format_))


def _filled(seen: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    used = np.flatnonzero(seen.counts)
    return seen.centers[used], seen.counts[used]


def _rounded(x: NDArray[np.float64], bounds: Range, format_: TensorFormat) -> NDArray[np.float64]:
    scale, zero = scale_of(bounds, format_)
    first, last = levels_of(format_.dtype, narrow=format_.narrow)
    rounded: NDArray[np.float64] = (np.clip(np.rint(x / scale) + zero, first, last) - zero) * scale
    return rounded


def _squared_error(seen: Histogram, bounds: Range, format_: TensorFormat) -> float:
    x, counts = _filled(seen)
    return float((counts * np.square(x - _rounded(x, bounds, format_))).sum())


def _divergence(seen: Histogram, bounds: Range, format_: TensorFormat) -> float:
    """Divergence of the clipped histogram (outliers at the bounds) from its quantized form, even inside each level."""
    x, counts = _filled(seen)
    p = counts.astype(np.float64)
    inside = (x >= bounds[0]) & (x <= bounds[1])
    level = np.unique(_rounded(x, bounds, format_), return_inverse=True)[1]
    per_level = np.bincount(level, weights=np.where(inside, p, 0.0))
    bins = np.bincount(level, weights=inside.astype(np.float64))
    q = (per_level / np.maximum(bins, 1.0))[level]
    p = np.where(inside, p, 0.0)
    for side, outside in ((0, x < bounds[0]), (-1, x > bounds[1])):
        rows = np.flatnonzero(inside)
        if rows.size and outside.any():
            p[rows[side]] += counts[outside].sum()
    good = (p > 0) & (q > 0)
    if not good.any():
        return math.inf
    p, q = p[good] / p[good].sum(), q[good] / q[good].sum()
    return float((p * np.log(p / q)).sum())
