"""Whether traffic was divided as asked, read after every request: a comparison is worthless where it was not.

Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data", NeurIPS 2022 (arXiv 2011.03567): the Bayes
factor of a Dirichlet distribution around the shares that were asked for,

    evidence = B(a + counts) / B(a) / product of shares ** counts,      a = concentration * shares

is a martingale while the division is right, so that it ever reaches 1/alpha with probability alpha at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compiler.errors import DataError
from rollout.bounds import check_alpha

ALPHA = 0.001
"""Small on purpose: a wrong alarm stops a good experiment, and a real fault of division is found soon all the same."""

CONCENTRATION = 100.0
"""Weight of the shares asked for, in requests: deviations of some per cent are expected, not all divisions alike."""


def log_evidence(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Logarithm of the evidence that the requests were not divided by the shares.

    Args:
        counts: Requests of each build.
        shares: The shares that were asked for; they sum to 1.

    Raises:
        DataError: Other numbers of counts and shares, a negative count, or shares that are none.
    """
    if len(counts) != len(shares) or min(counts, default=-1) < 0:
        raise DataError(f"counts {list(counts)} for shares {list(shares)}", remedy="give one count for each share")
    if min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise DataError(f"shares of traffic {list(shares)}", remedy="give shares above 0 that sum to 1")
    priors = [CONCENTRATION * share for share in shares]
    posterior = _log_beta([prior + count for prior, count in zip(priors, counts, strict=True)])
    expected = sum(count * math.log(share) for count, share in zip(counts, shares, strict=True))
    return posterior - _log_beta(priors) - expected


def is_mismatched(counts: Sequence[int], shares: Sequence[float], *, alpha: float = ALPHA) -> bool:
    """Traffic was divided otherwise than asked; wrong with probability alpha at most, however often it is read."""
    check_alpha(alpha)
    return log_evidence(counts, shares) >= -math.log(alpha)


def _log_beta(weights: Sequence[float]) -> float:
    return sum(map(math.lgamma, weights)) - math.lgamma(sum(weights))
