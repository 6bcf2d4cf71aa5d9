"""Histograms that grow with the data; the bins do not depend on the order or size of batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.model.numerics import Array

HALF = 4096
"""Bins on each side of zero. A bin is a power of two wide, so a range uses at least half of its side."""

BLOCK = 1 << 16
"""Elements that are sorted into bins at a time: a second-level cache holds them twice, and the bins."""

Counts = NDArray[np.int64]


@dataclass
class Histogram:
    """Counts of a tensor's elements, zero in the middle; it grows by joining neighbouring bins, which is exact.

    Args:
        exponent: A bin is 2^exponent wide; None before the first element that is not zero.
        counts: (2 × HALF,); bin i holds (i − HALF)·w ≤ x < (i − HALF + 1)·w.
        low: Smallest element.
        high: Largest element.
        zeros: Elements that are exactly zero, which every scale represents; not in `counts`.
    """

    exponent: int | None
    counts: Counts
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0

    def add(self, array: Array) -> None:
        """Counts the elements of a finite float array."""
        flat = np.asarray(array, dtype=np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        nonzero = int(np.count_nonzero(flat))
        self.zeros += flat.size - nonzero
        if not nonzero:
            return
        self.grow(exponent_of(max(-low, high)))
        counts = _bin_counts(flat, np.float32(2.0**-self._exponent))
        counts[HALF] -= flat.size - nonzero
        self.counts += counts

    def grow(self, exponent: int) -> None:
        """Widens the bins to 2^exponent where they are narrower."""
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(HALF // 2, np.int64), pairs, np.zeros(HALF // 2, np.int64)])
            self.exponent += 1

    @property
    def _exponent(self) -> int:
        return self.exponent if self.exponent is not None else 0

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        centers: NDArray[np.float64] = (np.arange(2 * HALF, dtype=np.float64) - HALF + 0.5) * 2.0**self._exponent
        return centers


def _bin_counts(flat: NDArray[np.float32], scale: np.float32) -> Counts:
    """Elements in each bin, of all elements; block by block, so that what is computed on the way stays in the cache."""
    counts = np.zeros(2 * HALF, np.int64)
    scaled, bins = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int64)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        # a product with a power of two is exact, so floor never moves a value to a neighbouring bin
        floats = np.multiply(part, scale, out=scaled[: part.size])
        places = bins[: part.size]
        np.copyto(places, np.floor(floats, out=floats), casting="unsafe")
        places += HALF
        counts += np.bincount(places, minlength=2 * HALF)
    return counts


def empty_histogram() -> Histogram:
    """A histogram of nothing."""
    return Histogram(None, np.zeros(2 * HALF, np.int64))


def exponent_of(reach: float) -> int:
    """The narrowest bins that reach an absolute value > 0, strictly inside."""
    _, power = math.frexp(reach)  # reach < 2**power
    # -126: narrower bins have a width that is no normal float32
    return max(power - int(math.log2(HALF)), -126)
