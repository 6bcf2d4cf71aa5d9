"""The typical value of paired differences, with an interval: Hodges and Lehmann's estimate and Wilcoxon's signed ranks.

The estimate is the median of all means of two differences (Walsh averages); the interval's ends are those averages that
a signed-rank test of the level would not refuse (Hodges and Lehmann, 1963; Hollander, Wolfe and Chicken, Nonparametric
Statistical Methods, section 3.3). It asks only that differences are symmetric about their centre, a quarter of them may
be spoiled without much harm to the estimate, and the level is exact from six pairs on. A bootstrap of so few pairs has
intervals that are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
LEAST_PAIRS = 6
"""Fewer pairs have no interval of 95 %: the widest one there is covers less."""

_EXACT_PAIRS = 40
"""Up to here the distribution of the signed ranks is counted out; beyond it is normal to three digits."""


@dataclass(frozen=True)
class Centre:
    """The centre of paired differences.

    Args:
        value: The estimate.
        low: Lower end of the 95 % interval; −∞ for fewer than `LEAST_PAIRS`.
        high: Upper end; ∞ for fewer.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


def centre_of(differences: Sequence[float]) -> Centre:
    """The centre of differences and its interval; at least one difference."""
    values = np.asarray(differences, np.float64)
    count = len(values)
    rows, columns = np.triu_indices(count)
    averages = np.sort((values[rows] + values[columns]) / 2)
    value = float(np.median(averages))
    if count < LEAST_PAIRS:
        return Centre(value, -math.inf, math.inf)
    outside = _outside(count)
    return Centre(value, float(averages[outside]), float(averages[len(averages) - 1 - outside]))


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Centre:
    """The centre of the ratios of paired positive values, computed on their logarithms."""
    logs = [math.log(above / below) for above, below in zip(numerators, denominators, strict=True)]
    centre = centre_of(logs)
    high = math.exp(centre.high) if math.isfinite(centre.high) else math.inf
    return Centre(math.exp(centre.value), math.exp(centre.low), high)


def _outside(count: int) -> int:
    """How many of the ordered averages lie below the interval, and as many above: Wilcoxon's critical value."""
    tail = (1.0 - LEVEL) / 2
    if count > _EXACT_PAIRS:
        mean, deviation = count * (count + 1) / 4, math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return max(0, math.floor(mean - NormalDist().inv_cdf(1.0 - tail) * deviation))
    below = np.cumsum(_rank_sums(count))
    return int(np.searchsorted(below, tail, side="right")) - 1  # the table's critical value: its sum is refused too


@cache
def _rank_sums(count: int) -> tuple[float, ...]:
    """Probability of each sum of the ranks with a positive sign, where every sign is a fair coin's."""
    sums = np.zeros(count * (count + 1) // 2 + 1)
    sums[0] = 1.0
    for rank in range(1, count + 1):
        moved = np.zeros_like(sums)
        moved[rank:] = sums[:-rank]
        sums = (sums + moved) / 2
    return tuple(sums.tolist())
