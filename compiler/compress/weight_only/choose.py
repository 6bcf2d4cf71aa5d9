"""Formats of all weights under a limit of bytes: the least expected divergence.

Every weight has a curve of bytes against expected divergence. It starts at its cheapest format; then the step with the
largest gain per byte is taken again and again, on the lower convex hull of each curve, until none fits any more. It is
optimal for the budget that it ends at (H. Everett, Generalized Lagrange Multiplier Method, 1963).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.errors import GateFailed
from compiler.target.scheme import BlockFormat


@dataclass(frozen=True)
class Option:
    """One format of one weight, with what it takes and what it costs."""

    format: BlockFormat
    bytes: int
    kl: float


def choose_formats(curves: Mapping[str, Sequence[Option]], budget_bytes: int | None) -> dict[str, tuple[Option, str]]:
    """The option of each weight, and the reason.

    Args:
        curves: Weight → its options.
        budget_bytes: What all may take together; None: each takes what costs least.

    Raises:
        GateFailed: The smallest formats of all take more.
    """
    hulls = {name: lower_hull(options) for name, options in curves.items()}
    if budget_bytes is None:
        return {name: (hull[-1], "nothing limits the bytes: the most accurate format") for name, hull in hulls.items()}
    used = sum(hull[0].bytes for hull in hulls.values())
    if used > budget_bytes:
        kl = sum(hull[0].kl for hull in hulls.values())
        raise GateFailed(
            f"the weights may take {_mb(budget_bytes)}, and their smallest formats take {_mb(used)}",
            remedy=f"Allow {_mb(used)}, at an expected divergence of {kl:.3g} nats a token, or take a smaller model.",
        )
    places = dict.fromkeys(hulls, 0)
    steps = [(-_gain(hull, 0), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        hull, place = hulls[name], places[name]
        grown = used + hull[place + 1].bytes - hull[place].bytes
        if grown > budget_bytes:
            continue  # a smaller step of another weight may still fit
        used, places[name] = grown, place + 1
        if place + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull, place + 1), name))
    return {name: (hull[places[name]], _reason(hull, places[name])) for name, hull in hulls.items()}


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best for some price of a byte, the smallest first."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.kl)):
        if hull and option.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _slope(hull[-1], option) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(smaller: Option, larger: Option) -> float:
    """Divergence saved for each byte more."""
    return (smaller.kl - larger.kl) / (larger.bytes - smaller.bytes)


def _gain(hull: Sequence[Option], place: int) -> float:
    return _slope(hull[place], hull[place + 1])


def _reason(hull: Sequence[Option], place: int) -> str:
    words = []
    if place:
        words.append(f"{_gain(hull, place - 1) * 1e6:.2g} nats a token saved by each MB over {hull[place - 1].format}")
    if place + 1 < len(hull):
        words.append(
            f"{_gain(hull, place) * 1e6:.2g} would be by {hull[place + 1].format}, and the bytes pay more elsewhere"
        )
    return "; ".join(words) or "the only format"


def _mb(size: int) -> str:
    return f"{size / 1e6:.4g} MB" if abs(size) >= 1e5 else f"{size / 1e6:.2g} MB"
