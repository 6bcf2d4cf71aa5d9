"""Bounds for quantiles that people read (the median, p99) that may be read after every request.

Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification",
Bernoulli 28(3), 2022 (arXiv 1906.09712), in a closed form for a quantile that is chosen before: the quantile p is, at
all moments together, between the sample quantiles p - f and p + f,

    f = 1.5 sqrt(p (1 - p) l) + 0.8 l,      l = (1.4 ln ln(2.1 n) + ln(10 / alpha)) / n

No assumption is made on the distribution. A gate is not judged by it: that is a share above a limit, which needs fewer
requests.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from rollout.bounds import ALPHA, Bounds, check_alpha


def quantile_bounds(values: NDArray[np.floating], quantile: float, *, alpha: float = ALPHA) -> Bounds:
    """Bounds of one quantile of the distribution that the values are drawn from.

    Args:
        values: What was measured so far, shape `(N,)`, in any order.
        quantile: The share of values below it, above 0 and below 1.
        alpha: The probability that the bounds ever leave it out.

    Raises:
        DataError: The quantile is not between 0 and 1, or a value is NaN.
    """
    check_alpha(alpha)
    if not 0 < quantile < 1:
        raise DataError(f"the quantile is {quantile}", remedy="give a number above 0 and below 1, such as 0.99")
    if np.isnan(values).any():
        raise DataError("a measured value is NaN", remedy="count such requests as errors")
    if not values.size:
        return Bounds()
    ordered, margin = np.sort(values), _margin(values.size, quantile, alpha)
    # The lower end is the last value with at most a share p - f below it, the upper the first with more than p + f.
    first, last = math.floor(values.size * (quantile - margin)), math.floor(values.size * (quantile + margin)) + 1
    low = float(ordered[first - 1]) if first >= 1 else -math.inf
    return Bounds(low, float(ordered[last - 1]) if last <= values.size else math.inf)


def _margin(count: int, quantile: float, alpha: float) -> float:
    rate = (1.4 * math.log(math.log(2.1 * count)) + math.log(10 / alpha)) / count
    return 1.5 * math.sqrt(quantile * (1 - quantile) * rate) + 0.8 * rate
