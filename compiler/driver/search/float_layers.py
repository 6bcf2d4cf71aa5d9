"""A quantized candidate that loses too much: its worst layers go back to float, as few as hold the limit.

    count of layers in float:  1, 2, 4, 8, …  until the limit holds or nothing gets better, then halving between

Layers are ranked once by how much the outputs err when each alone is quantized. A step needs no build: its border
model is run on the data set. Only what holds the limit is built, and then judged by all gates like any candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PLATEAU = 4
"""Doublings without a gain after which the search for this candidate ends."""

FAR = 5.0
"""A drop of more limits than this is far off, and is given up after `FAR_PLATEAU` doublings without a gain."""

FAR_PLATEAU = 2

GAIN = 0.05
"""Less than this part of the limit is no gain."""

WHY = {
    "plateau": f"{PLATEAU} doublings in turn brought nothing",
    "far": f"over {FAR:g} times the limit is lost, and {FAR_PLATEAU} doublings in turn brought nothing",
    "budget": "the budget of trials is spent",
    "layers": "no more may be reverted, or nothing would be gained from the others",
}
"""Ways to end without an answer, in words."""


@dataclass(frozen=True)
class Reversal:
    """What the reversal came to.

    Args:
        count: Fewest layers in float with which the limit held; None where it never did.
        why: Why it ended: `held`, or a key of `WHY`.
    """

    count: int | None
    why: str


def fewest_layers(drop_at: Callable[[int], float], *, most: int, limit: float, first: float, budget: int) -> Reversal:
    """The fewest of the worst layers that must stay float.

    Args:
        drop_at: Count of layers in float → the drop that is judged; each call is a trial.
        most: Most layers that may be reverted.
        limit: The drop that must not be exceeded.
        first: The drop with no layer in float.
        budget: Most calls of `drop_at`.
    """
    low, count, best, stale = 0, 1, first, 0
    while True:
        if count > most:
            return Reversal(None, "layers")
        if budget <= 0:
            return Reversal(None, "budget")
        drop, budget = drop_at(count), budget - 1
        if drop <= limit:
            return Reversal(_halved(drop_at, low, count, limit, budget), "held")
        stale = 0 if is_gain(drop, best, limit) else stale + 1
        if stale >= PLATEAU:
            return Reversal(None, "plateau")
        if stale >= FAR_PLATEAU and is_far(min(best, drop), limit):
            return Reversal(None, "far")
        best, low, count = min(best, drop), count, min(2 * count, most) if count < most else most + 1


def is_gain(drop: float, best: float, limit: float) -> bool:
    """Whether a drop is better than the best so far by more than nothing."""
    return drop <= best - GAIN * max(limit, 1.0)


def is_far(drop: float, limit: float) -> bool:
    """Whether a drop is so far off the limit that one thing that brings nothing is as good as many."""
    return drop > FAR * max(limit, 1.0)


def _halved(drop_at: Callable[[int], float], low: int, high: int, limit: float, budget: int) -> int:
    """Between a count that does not hold and one that does, the least that was seen to hold."""
    while high - low > 1 and budget > 0:
        middle = (low + high) // 2
        budget -= 1
        low, high = (low, middle) if drop_at(middle) <= limit else (middle, high)
    return high
