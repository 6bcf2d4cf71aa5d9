"""One measured property of a candidate: what it is held against, its bounds now, and whether they decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from compiler.artifact.adapter import Detail
from rollout.bounds import ALPHA, Bounds
from rollout.means import TUNED_FOR, Moments, half_width, mean_bounds
from rollout.shares import Count, exceeds, share_bounds

MOST = 10_000_000
"""Requests beyond which no forecast is given: who waits for so many needs another limit."""


class Role(StrEnum):
    """What a metric may do to a rollout."""

    GUARDRAIL = "guardrail"
    SIGNAL = "signal"
    SHOWN = "shown"


class State(StrEnum):
    """What the bounds say of the limit."""

    WITHIN = "within"
    BREACHED = "breached"
    OPEN = "open"
    UNKNOWN = "NaN"
    SHOWN = "shown"


class Judged(StrEnum):
    """Which figure the bounds are of, and is held against the limit."""

    SHARE = "share"
    DIFFERENCE = "difference"
    VALUE = "value"


@dataclass(frozen=True)
class Metric:
    """A metric at one moment of an experiment. Smaller is better for all that are held against a limit.

    Args:
        name: Its name.
        unit: Unit of the values.
        role: A guardrail rolls back, a signal holds the ramp, what is shown decides nothing.
        judged: Which figure `bounds` are of.
        current: Value of the build in use; NaN where only the candidate has one.
        candidate: Value of the candidate.
        bounds: Bounds of the judged figure that hold now.
        limit: What the judged figure may be at most; NaN for what is shown.
        samples: Requests it is taken from.
        difference: Candidate minus current; NaN where only the candidate has a value.
        state: What the bounds say of the limit.
        more: About how many more requests decide it if they go on as before; None where nobody can say.
    """

    name: str
    unit: str
    role: Role
    judged: Judged
    current: Detail
    candidate: Detail
    bounds: Bounds
    limit: Detail
    samples: int
    difference: Detail
    state: State
    more: int | None = None


def make_metric(
    name: str,
    unit: str,
    *,
    role: Role,
    judged: Judged,
    values: tuple[float, float],
    bounds: Bounds,
    limit: float,
    samples: int,
) -> Metric:
    """A metric with its difference and what its bounds say of the limit; the arguments are those of `Metric`.

    Args:
        values: Of the build in use, and of the candidate.
    """
    current, candidate = values
    state = _state(role, candidate, bounds, limit) if samples else _unseen(role)
    return Metric(name, unit, role, judged, current, candidate, bounds, limit, samples, candidate - current, state)


def _unseen(role: Role) -> State:
    return State.SHOWN if role == Role.SHOWN else State.OPEN


def _state(role: Role, candidate: float, bounds: Bounds, limit: float) -> State:
    if math.isnan(candidate):
        return State.UNKNOWN
    if role == Role.SHOWN:
        return State.SHOWN
    if bounds.low > limit:
        return State.BREACHED
    return State.WITHIN if bounds.high <= limit else State.OPEN


def share_metric(
    name: str, candidate: Count, *, limit: float, role: Role, current: Count | None = None, alpha: float = ALPHA
) -> Metric:
    """A share of the candidate's requests that has a limit: errors, late answers, other decisions.

    Args:
        name: Its name.
        candidate: The candidate's requests.
        limit: The share that is allowed, above 0 and below 1.
        role: What it may do.
        current: The requests of the build in use, to read beside it.
        alpha: The probability that an end of the bounds is ever on the wrong side.
    """
    seen, bounds = (current or Count()).share, share_bounds(candidate, alpha=alpha)
    metric = make_metric(
        name,
        "%",
        role=role,
        judged=Judged.SHARE,
        values=(seen, candidate.share),
        bounds=bounds,
        limit=limit,
        samples=candidate.total,
    )
    return _forecast(metric, lambda: _requests_for_share(candidate, limit, alpha))


def mean_metric(
    name: str, unit: str, *, current: Moments, difference: Moments, limit: float, role: Role, alpha: float = ALPHA
) -> Metric:
    """The mean difference of pairs that were made from the same request.

    Args:
        name: Its name.
        unit: Unit of the values.
        current: Values of the build in use.
        difference: Candidate minus current, request by request.
        limit: What the mean difference may be at most; NaN for what is shown.
        role: What it may do.
        alpha: The probability that the bounds ever leave out the mean difference.
    """
    value, bounds = current.mean + difference.mean, mean_bounds(difference, alpha=alpha)
    if not difference.count:
        value = math.nan
    metric = make_metric(
        name,
        unit,
        role=role,
        judged=Judged.DIFFERENCE,
        values=(current.mean, value),
        bounds=bounds,
        limit=limit,
        samples=difference.count,
    )
    return _forecast(metric, lambda: _pairs_for_mean(difference, limit, alpha))


def _forecast(metric: Metric, count: Callable[[], int | None]) -> Metric:
    """The metric with about how many more requests decide it, where it is open."""
    total = count() if metric.state == State.OPEN else None
    return metric if total is None else replace(metric, more=max(total - metric.samples, 1))


def _requests_for_share(count: Count, limit: float, alpha: float) -> int | None:
    """Requests after which the same share would be decided: to a tenth."""
    total, share = max(count.total, 1), (count.share if count.total else 0.0)
    while total <= MOST:
        hits = round(share * total)
        # what share_bounds would say, without searching for the ends
        if exceeds(Count(total, hits), limit, alpha=alpha) or exceeds(
            Count(total, total - hits), 1 - limit, alpha=alpha
        ):
            return total
        total += total // 10 + 1
    return None


def _pairs_for_mean(moments: Moments, limit: float, alpha: float) -> int | None:
    """Pairs after which the same mean and spread would be decided: to a tenth."""
    if moments.count < 2 or not moments.deviation:
        return None
    counts = np.unique(np.geomspace(moments.count + 1, MOST, 200).astype(np.int64))
    decided = half_width(counts, alpha=alpha, tuned_for=TUNED_FOR) * moments.deviation < abs(moments.mean - limit)
    return int(counts[decided][0]) if decided.any() else None
