"""Bounds for the mean of paired differences that may be read after every pair.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 52(6), 2024 (arXiv 2103.06476), in the form of their
own package `sequential.causal` (`std_conjmix_margin`):

    mean ± sd * sqrt(2 (n r² + 1) / (n² r²) * ln(sqrt(n r² + 1) / alpha))

It needs no limit on the values, only a finite variance, and is exact in the limit of many samples: nothing is said
before `FEWEST` of them. `r` makes the interval narrowest near a number of samples that is chosen before the experiment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from rollout.bounds import ALPHA, Bounds, check_alpha

FEWEST = 50
"""Samples below which the normal approximation is not trusted."""

TUNED_FOR = 500
"""Samples near which the interval is narrowest: some hundreds, which a difference of a sixth of its spread takes."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a stream; a value is added in constant time (Welford, 1962).

    Args:
        count: Number of values.
        mean: Their mean, 0 without values.
        squares: Sum of the squared deviations from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation, 0 for fewer than two values."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def add(self, values: Iterable[float]) -> Moments:
        """The moments with more values.

        Raises:
            DataError: A value is not finite.
        """
        count, mean, squares = self.count, self.mean, self.squares
        for value in values:
            if not math.isfinite(value):
                raise DataError(f"a measured value is {value}", remedy="count such requests as errors")
            count += 1
            step = value - mean
            mean += step / count
            squares += step * (value - mean)
        return Moments(count, mean, squares)


def mean_bounds(moments: Moments, *, alpha: float = ALPHA, tuned_for: int = TUNED_FOR) -> Bounds:
    """Bounds of the true mean that hold at all moments together with probability 1 - alpha.

    Args:
        moments: What was seen so far.
        alpha: The probability that the bounds ever leave out the mean.
        tuned_for: Samples near which the interval is narrowest; chosen before the first sample.
    """
    check_alpha(alpha)
    if moments.count < FEWEST:
        return Bounds()
    half = float(half_width(np.array([moments.count]), alpha=alpha, tuned_for=tuned_for)[0]) * moments.deviation
    return Bounds(moments.mean - half, moments.mean + half)


def half_width(counts: NDArray[np.integer], *, alpha: float = ALPHA, tuned_for: int = TUNED_FOR) -> NDArray[np.float64]:
    """Half of the interval in units of the standard deviation, for each number of samples."""
    spread = counts * _precision(alpha, tuned_for) + 1
    return np.asarray(np.sqrt(2 * spread / (counts * (spread - 1)) * np.log(np.sqrt(spread) / alpha)), np.float64)


def _precision(alpha: float, tuned_for: int) -> float:
    # The first terms of the exact optimum, which needs Lambert's W (`best_rho2_approx` of the authors' package).
    weight = -2 * math.log(alpha)
    return (weight + math.log(weight + 1)) / tuned_for
