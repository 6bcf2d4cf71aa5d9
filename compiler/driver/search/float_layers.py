"""A quantized candidate that loses too much: its worst layers go back to float, as few as hold the limit.

    count of layers in float:  1, 2, 4, 8, …  until the limit holds or nothing gets better, then halving between

Layers are ranked once by how much the outputs err when each alone is quantized. A step needs no build: its border
model is run on the data set. Only what holds the limit is built, and then judged by all gates like any candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

PLATEAU = 4
"""Doublings without a gain after which the search for this candidate ends."""

FAR = 5.0
"""A drop of more limits than this is far off, and is given up after `FAR_PLATEAU` doublings without a gain."""

# half of PLATEAU: from far off, the limit is rarely reached at all
FAR_PLATEAU = 2

GAIN = 0.05
"""Less than this part of the limit is no gain."""


class FallbackEnd(StrEnum):
    """Why the search for layers to keep in float ended."""

    HELD = "held"
    PLATEAU = "plateau"
    FAR = "far"
    BUDGET = "budget"
    LAYERS = "layers"


WHY = {
    FallbackEnd.PLATEAU: f"{PLATEAU} doublings in turn brought nothing",
    FallbackEnd.FAR: f"over {FAR:g} times the limit is lost, and {FAR_PLATEAU} doublings in turn brought nothing",
    FallbackEnd.BUDGET: "the budget of trials is spent",
    FallbackEnd.LAYERS: "no more may be reverted, or nothing would be gained from the others",
}
"""Ways to end without an answer, in words."""


@dataclass(frozen=True)
class FloatFallback:
    """What the search for layers to keep in float came to.

    Args:
        count: Fewest layers in float with which the limit held; None where it never did.
        why: Why it ended.
    """

    count: int | None
    why: FallbackEnd


def fewest_layers(
    drop_at: Callable[[int], float], *, most: int, limit: float, first: float, budget: int
) -> FloatFallback:
    """The fewest of the worst layers that must stay float.

    Args:
        drop_at: Count of layers in float → the drop that is judged; each call is a trial.
        most: Most layers that may be reverted.
        limit: The drop that must not be exceeded.
        first: The drop with no layer in float.
        budget: Most calls of `drop_at`.
    """
    low, best, stale = 0, first, 0
    for count in _doublings(most):
        if budget <= 0:
            return FloatFallback(None, FallbackEnd.BUDGET)
        drop, budget = drop_at(count), budget - 1
        if drop <= limit:
            return FloatFallback(_halved(drop_at, low, count, limit, budget), FallbackEnd.HELD)
        stale = 0 if is_gain(drop, best, limit) else stale + 1
        low, best = count, min(best, drop)
        if stale >= PLATEAU:
            return FloatFallback(None, FallbackEnd.PLATEAU)
        if stale >= FAR_PLATEAU and is_far(best, limit):
            return FloatFallback(None, FallbackEnd.FAR)
    return FloatFallback(None, FallbackEnd.LAYERS)


def _doublings(most: int) -> Iterator[int]:
    """1, 2, 4, … and last `most` itself."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most > 0:
        yield most


def is_gain(drop: float, best: float, limit: float) -> bool:
    """Whether a drop is better than the best so far by more than nothing."""
    return drop <= best - GAIN * max(limit, 1.0)


def is_far(drop: float, limit: float) -> bool:
    """Whether to stop early: the drop exceeds `FAR` times the limit."""
    return drop > FAR * max(limit, 1.0)


def _halved(drop_at: Callable[[int], float], low: int, high: int, limit: float, budget: int) -> int:
    """Between a count that does not hold and one that does, the least that was seen to hold."""
    while high - low > 1 and budget > 0:
        middle = (low + high) // 2
        budget -= 1
        low, high = (low, middle) if drop_at(middle) <= limit else (middle, high)
    return high
