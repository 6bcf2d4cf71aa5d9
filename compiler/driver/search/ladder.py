"""How much can be pruned inside an accuracy limit: a ladder of ratios, then halving between the last that held and the
first that did not.

    10 % → 20 % → 30 % → 45 % → 60 %      until the limit breaks, nothing is left to cut, or trials run out
              └ held ┄ 25 % ┄ broke ┘      until the two are as close as widths in steps can tell apart
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

LADDER = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75)
"""Shares of the multiply-accumulates."""

FINEST = 0.04
"""Two ratios closer than this give widths that mostly are the same."""


class LadderEnd(StrEnum):
    """Why the search for a ratio ended: the limit broke, no more can be cut, no ratio is left, or no trial is."""

    LIMIT = "limit"
    CHANNELS = "channels"
    LADDER = "ladder"
    BUDGET = "budget"


@dataclass(frozen=True)
class Rung:
    """One ratio that was tried.

    Args:
        asked: Share of the multiply-accumulates that was to be cut.
        reached: Share that could be.
        drop: What is judged: points of the metric lost; infinite where it could not be made.
    """

    asked: float
    reached: float
    drop: float

    @property
    def is_last(self) -> bool:
        """Whether nothing more can be cut."""
        return self.reached < self.asked - FINEST / 2


@dataclass(frozen=True)
class Climb:
    """What the climb came to.

    Args:
        held: Rungs that held the limit, the least ratio first.
        why: Why it ended.
    """

    held: tuple[Rung, ...]
    why: LadderEnd


def climb(measure: Callable[[float], Rung], *, limit: float, budget: int) -> Climb:
    """The ratios that hold a limit.

    Args:
        measure: Ratio → what it costs; each call is a trial.
        limit: The drop that must not be exceeded.
        budget: Most calls of `measure`.
    """
    held: list[Rung] = []
    for ratio in LADDER:
        if budget <= 0:
            return Climb(tuple(held), LadderEnd.BUDGET)
        rung, budget = measure(ratio), budget - 1
        if rung.drop > limit:
            low = held[-1].asked if held else 0.0
            return Climb((*held, *_halved(measure, low, ratio, limit, budget)), LadderEnd.LIMIT)
        held.append(rung)
        if rung.is_last:
            return Climb(tuple(held), LadderEnd.CHANNELS)
    return Climb(tuple(held), LadderEnd.LADDER)


def _halved(measure: Callable[[float], Rung], low: float, high: float, limit: float, budget: int) -> tuple[Rung, ...]:
    """Those that held between a ratio that did and one that did not."""
    held: list[Rung] = []
    while high - low > FINEST and budget > 0:
        # a part of cache keys and printed: without the last digits of binary fractions
        middle = round((low + high) / 2, 4)
        rung, budget = measure(middle), budget - 1
        if rung.drop <= limit:
            held.append(rung)
            low = middle
        else:
            high = middle
    return tuple(held)
