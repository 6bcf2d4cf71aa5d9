"""What a candidate is held against, and how the probability of a false alarm is divided among its guardrails."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.artifact.adapter import Number
from compiler.errors import DataError
from rollout.bounds import ALPHA

LATE_SHARE = 0.01
"""A limit for p99 is a limit for the share of requests above it."""

MEDIAN_SHARE = 0.5
"""A limit for the median, as a build's latency gate is one, is a limit for the share of requests above it."""


@dataclass(frozen=True)
class Limits:
    """What a candidate is held against.

    Args:
        error_share: Share of requests whose answer may be no number (NaN or infinite).
        decision_share: Share of requests that may be decided otherwise.
        cosine_drop: How far the mean cosine similarity of both answers may fall below 1.
        latency_ms: Time that 99 % of the requests must keep; None where nothing is asked.
        threshold: Similarity above which two faces are one person: rows are pairs of embeddings, first and second,
            third and fourth. None compares the highest score of each row.
        median_ms: Time that half of the requests must keep; None where nothing is asked.
    """

    error_share: float = 0.01
    decision_share: float = 0.01
    cosine_drop: float = 0.01
    latency_ms: Number = None
    threshold: Number = None
    median_ms: Number = None

    def __post_init__(self) -> None:
        shares = {"error_share": self.error_share, "decision_share": self.decision_share}
        if wrong := [name for name, share in shares.items() if not 0 < share < 1]:
            raise DataError(f"{', '.join(wrong)}: no share", remedy="give a number above 0 and below 1, such as 0.01")


@dataclass(frozen=True)
class Alphas:
    """Probability of a false alarm of each metric; those of the guardrails sum to the whole.

    A signal never rolls back: it has a whole of its own, and takes nothing from the guardrails.

    Args:
        late: Of the share of late answers.
        other: Of every other guardrail.
        signal: Of the signal.
    """

    late: float
    other: float
    signal: float


LATE_PART = 0.7
"""Lateness has a limit that a good build comes near to, and needs the most requests; errors and other decisions of a
broken build are many. Fixed beforehand, so that the parts may differ."""


def divide_alpha(others: int, *, has_latency: bool, alpha: float = ALPHA) -> Alphas:
    """The parts of each metric.

    Args:
        others: Number of guardrails that are not late answers.
        has_latency: Whether late answers are a guardrail.
        alpha: The probability that any guardrail is ever breached by a build that keeps every limit.
    """
    late = alpha * LATE_PART if has_latency else 0.0
    return Alphas(late, (alpha - late) / others, alpha)
