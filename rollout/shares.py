"""Bounds for a share of requests (errors, disagreement, late answers) that may be read after every request.

A betting e-process after Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of
the Royal Statistical Society B 86(1), 2024 (arXiv 2010.09686). To test "the share is at most m", capital 1 is bet on
each request x, 0 or 1:

    capital = mean over bets b of  product over requests of  1 + b (x - m),      0 < b < 1/m

While the share is at most m, no bet wins on average, and by Ville's inequality the capital ever reaches 1/alpha with
probability alpha at most. A bet is written as the share q that it is best for: with odds c times those of m the factors
are the likelihood ratios q/m and (1-q)/(1-m). Several bets are averaged because the true share is not known. Counts are
all that is needed of the past.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from compiler.errors import DataError
from rollout.bounds import ALPHA, Bounds, check_alpha

BETS = ((1.05, 1), (1.3, 1), (1.9, 8), (3.0, 24), (6.0, 2))
"""Odds of each bet over those of the limit, and its weight: most at two to three times the limit, where a gate has to
decide soon; a little near the limit, so that bounds go on narrowing."""

WEIGHTS = sum(weight for _, weight in BETS)

STEPS = 50
"""Halvings of an interval in a search for an end: to the precision of a double."""


@dataclass(frozen=True)
class Count:
    """How many of the requests had a property.

    Args:
        total: All requests.
        hits: Those with the property.
    """

    total: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.total:
            raise DataError(f"{self.hits} of {self.total} requests", remedy="count hits among all requests")

    @property
    def share(self) -> float:
        """Hits among all requests; NaN without any."""
        return self.hits / self.total if self.total else math.nan

    def add(self, hits: int, total: int) -> Count:
        """The count with more requests."""
        return Count(self.total + total, self.hits + hits)


def log_capital(count: Count, limit: float) -> float:
    """Logarithm of the evidence against "the share is at most `limit`".

    Args:
        count: What was seen.
        limit: The share, above 0 and below 1.

    Raises:
        DataError: The limit is not between 0 and 1.
    """
    if not 0 < limit < 1:
        raise DataError(f"a share is held against {limit}", remedy="give a limit above 0 and below 1")
    return _log_sum([_log_likelihood_ratio(count, limit, odds) + math.log(weight / WEIGHTS) for odds, weight in BETS])


def exceeds(count: Count, limit: float, *, alpha: float = ALPHA) -> bool:
    """The share is above the limit; ever wrong, however often it is read, with probability alpha at most."""
    check_alpha(alpha)
    return log_capital(count, limit) >= -math.log(alpha)


def share_bounds(count: Count, *, alpha: float = ALPHA) -> Bounds:
    """Bounds of the true share; each end is ever on the wrong side of it with probability alpha at most.

    The lower end is above a limit exactly where `exceeds` says so.
    """
    check_alpha(alpha)
    misses = Count(count.total, count.total - count.hits)
    return Bounds(_lower_end(count, alpha), 1 - _lower_end(misses, alpha))


def _lower_end(count: Count, alpha: float) -> float:
    # The evidence falls as the limit rises towards the observed share, so that the end is found by halving.
    if not count.hits:
        return 0.0
    low, high = 0.0, count.share
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if 0 < middle < 1 and exceeds(count, middle, alpha=alpha) else (low, middle)
    return low


def _log_likelihood_ratio(count: Count, limit: float, odds: float) -> float:
    loss = -math.log1p((odds - 1) * limit)  # ln((1-q)/(1-m)) with q = c m / (1 + (c-1) m)
    return count.hits * math.log(odds) + count.total * loss


def _log_sum(logs: list[float]) -> float:
    highest = max(logs)
    return highest + math.log(sum(math.exp(value - highest) for value in logs))
