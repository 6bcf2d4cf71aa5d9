"""Times of two builds' requests: shares above a limit that decide, quantiles that people read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rollout.limits import LATE_SHARE, MEDIAN_SHARE, Alphas, Limits
from rollout.metric import Judged, Metric, Role, make_metric, share_metric
from rollout.quantiles import quantile_bounds
from rollout.shares import Count, exceeds

MOST_TIMES = 200_000
"""Times that quantiles are taken from, the first ones: some MB a build. Shares go on being counted."""

Values = NDArray[np.float64]


class Times:
    """Times of one build's requests.

    Args:
        limits: Times above which a request is counted.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._first: list[float] = []
        self.late, self.slow = Count(), Count()

    @property
    def values(self) -> Values:
        """The first of them, ms."""
        return np.array(self._first, np.float64)

    def add(self, latency_ms: float) -> None:
        """One more request; infinite where it was not answered."""
        self.late = self.late.add(int(latency_ms > _or_infinite(self._limits.latency_ms)), 1)
        self.slow = self.slow.add(int(latency_ms > _or_infinite(self._limits.median_ms)), 1)
        if np.isfinite(latency_ms) and len(self._first) < MOST_TIMES:
            self._first.append(latency_ms)

    def breached(self, alphas: Alphas) -> bool:
        """Whether too many were late; quick, to be asked after every request."""
        limits = self._limits
        is_late = limits.latency_ms is not None and exceeds(self.late, LATE_SHARE, alpha=alphas.late)
        is_slow = limits.median_ms is not None and exceeds(self.slow, MEDIAN_SHARE, alpha=alphas.other)
        return is_late or is_slow


def late_metrics(candidate: Times, current: Times, limits: Limits, alphas: Alphas) -> list[Metric]:
    """Every limit of time as the share of requests above it."""
    metrics, guardrail = [], Role.GUARDRAIL
    if limits.latency_ms is not None:
        name = f"later than {limits.latency_ms:g} ms"
        counts, alpha = (candidate.late, current.late), alphas.late
        metrics.append(share_metric(name, counts[0], limit=LATE_SHARE, role=guardrail, current=counts[1], alpha=alpha))
    if limits.median_ms is not None:
        name = f"slower than the gate's {limits.median_ms:g} ms"
        counts, alpha = (candidate.slow, current.slow), alphas.other
        metrics.append(
            share_metric(name, counts[0], limit=MEDIAN_SHARE, role=guardrail, current=counts[1], alpha=alpha)
        )
    return metrics


def quantile_metrics(candidate: Values, current: Values) -> list[Metric]:
    """The median and p99, to be read."""
    return [_quantile(f"latency p{100 * share:g}", candidate, current, share) for share in (0.5, 0.99)]


def _quantile(name: str, candidate: Values, current: Values, share: float) -> Metric:
    values = [float(np.quantile(times, share)) if times.size else np.nan for times in (current, candidate)]
    return make_metric(
        name,
        "ms",
        role=Role.SHOWN,
        judged=Judged.VALUE,
        values=(values[0], values[1]),
        bounds=quantile_bounds(candidate, share),
        limit=np.nan,
        samples=candidate.size,
    )


def _or_infinite(limit: float | None) -> float:
    return np.inf if limit is None else limit
