"""Formats of all weights under a limit of bytes, of time, or both: the least expected divergence.

Every weight has a curve of cost against expected divergence. It starts at its cheapest format; then the step with the
largest gain for its cost is taken again and again, on the lower convex hull of each curve, until none fits any more. It
is optimal for the limit that it ends at (H. Everett, Generalized Lagrange Multiplier Method, 1963). The cost is bytes
over their limit and time over its limit, added.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.compress.weight_only.plan import WeightChoice, WeightPlan
from compiler.errors import GateFailed
from compiler.target.scheme import BlockFormat


@dataclass(frozen=True)
class Option:
    """One format of one weight, with what it takes and what it costs.

    Args:
        format: Bits and blocks.
        bytes: Of weights, scales and zero points.
        kl: Expected divergence.
        time: Of its product, against that of all weights in the fastest format.
    """

    format: BlockFormat
    bytes: int
    kl: float
    time: float = 0.0


@dataclass(frozen=True)
class Budget:
    """What all weights may take together; None where nothing limits it.

    Args:
        bytes: Of weights, scales and zero points.
        time: Of their products, against that of all weights in the fastest format.
        why: What leaves them so many bytes, for the error where those do not do.
    """

    bytes: int | None = None
    time: float | None = None
    why: str = ""

    def cost(self, option: Option) -> float:
        """The share that an option takes of what there is."""
        bytes_ = option.bytes / self.bytes if self.bytes is not None else 0.0
        return bytes_ + (option.time / self.time if self.time is not None else 0.0)

    def holds(self, used_bytes: int, used_time: float) -> bool:
        """Whether that much fits."""
        fits = self.bytes is None or used_bytes <= self.bytes
        return fits and (self.time is None or used_time <= self.time)


def choose_formats(curves: Mapping[str, Sequence[Option]], budget: Budget) -> dict[str, tuple[Option, str]]:
    """The option of each weight, and the reason.

    Args:
        curves: Weight → its options.
        budget: What all may take together; without any limit each takes what costs least.

    Raises:
        GateFailed: The cheapest formats of all take more.
    """
    if budget.bytes is None and budget.time is None:
        best = {name: min(options, key=lambda option: (option.kl, option.bytes)) for name, options in curves.items()}
        return {name: (option, "nothing limits the bytes: the most accurate format") for name, option in best.items()}
    hulls = {name: lower_hull(options, budget.cost) for name, options in curves.items()}
    used, time = sum(hull[0].bytes for hull in hulls.values()), sum(hull[0].time for hull in hulls.values())
    if not budget.holds(used, time):
        raise _too_small(budget, used, time, sum(hull[0].kl for hull in hulls.values()))
    places = dict.fromkeys(hulls, 0)
    steps = [(-_gain(hull, 0, budget), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        hull, place = hulls[name], places[name]
        grown = used + hull[place + 1].bytes - hull[place].bytes
        longer = time + hull[place + 1].time - hull[place].time
        if not budget.holds(grown, longer):
            continue  # a smaller step of another weight may still fit
        used, time, places[name] = grown, longer, place + 1
        if place + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull, place + 1, budget), name))
    return {name: (hull[places[name]], _reason(hull, places[name])) for name, hull in hulls.items()}


def choose_weights(measured: Path, *, budget: Budget, times: Mapping[int, float], scheme: str) -> WeightPlan:
    """Chooses the format of every weight by what was measured.

    Args:
        measured: The file that `measure_weights` wrote.
        budget: What all weights of the model may take, those that stay in float too.
        times: Bits → time of a product of weights of so many bits; empty where nothing is known of it.
        scheme: Its name, for the plan.

    Raises:
        GateFailed: The smallest formats take more.
    """
    costs = json.loads(measured.read_bytes())
    weights, other_bytes = costs["weights"], int(costs["other_bytes"])
    curves = {weight["name"]: options for weight, options in zip(weights, _options(weights, times), strict=True)}
    left = None if budget.bytes is None else budget.bytes - other_bytes
    chosen = choose_formats(curves, replace(budget, bytes=left))
    choices = tuple(
        WeightChoice(weight["name"], weight["node"], weight["op"], option.format, option.bytes, option.kl, reason)
        for weight in weights
        for option, reason in [chosen[weight["name"]]]
    )
    kl, time = (
        sum(values) for values in zip(*((option.kl, option.time) for option, _ in chosen.values()), strict=True)
    )
    least = other_bytes + sum(min(option.bytes for option in options) for options in curves.values())
    return WeightPlan(scheme, budget.bytes, other_bytes, choices, kl, least, time)


def _options(weights: Sequence[Mapping[str, Any]], times: Mapping[int, float]) -> Iterator[list[Option]]:
    """The options of each weight, with the times of their products; a table that no product shares takes none."""
    fastest = min(times.values(), default=1.0) * sum(weight["elements"] for weight in weights)
    for weight in weights:
        share = weight["elements"] / fastest if fastest else 0.0
        formats = [(BlockFormat(*format_), size, kl) for format_, size, kl in weight["options"]]
        yield [Option(format_, size, kl, share * times.get(format_.bits, 0.0)) for format_, size, kl in formats]


def lower_hull(options: Sequence[Option], cost: Callable[[Option], float]) -> list[Option]:
    """The options that are best for some price of what they take, the cheapest first."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (cost(option), option.kl)):
        if hull and option.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _slope(hull[-1], option, cost) >= _slope(hull[-2], hull[-1], cost):
            hull.pop()
        hull.append(option)
    return hull


def _slope(cheaper: Option, dearer: Option, cost: Callable[[Option], float]) -> float:
    """Divergence saved for each unit of cost more."""
    return (cheaper.kl - dearer.kl) / (cost(dearer) - cost(cheaper))


def _gain(hull: Sequence[Option], place: int, budget: Budget) -> float:
    return _slope(hull[place], hull[place + 1], budget.cost)


def _too_small(budget: Budget, used: int, time: float, kl: float) -> GateFailed:
    if budget.bytes is not None and used > budget.bytes:
        return GateFailed(
            f"the weights may take {_mb(max(0, budget.bytes))}, and their smallest formats take {_mb(used)}"
            + (f": {budget.why}" if budget.why else ""),
            remedy=f"Allow {_mb(used)}, at an expected divergence of {kl:.3g} nats a token, or take a smaller model.",
        )
    return GateFailed(
        f"products may take {budget.time:.3g} of the time of all weights in the fastest format, and take {time:.3g}",
        remedy="Allow fewer tokens a second, or take a smaller model.",
    )


def _reason(hull: Sequence[Option], place: int) -> str:
    words = []
    if place:
        words.append(f"{_saved(hull, place - 1)} over {hull[place - 1].format}")
    if place + 1 < len(hull):
        words.append(f"{_saved(hull, place)} by {hull[place + 1].format}, and what it takes pays more elsewhere")
    return "; ".join(words) or "the only format"


def _saved(hull: Sequence[Option], place: int) -> str:
    smaller, larger = hull[place], hull[place + 1]
    more = larger.bytes - smaller.bytes
    saved = smaller.kl - larger.kl
    return f"{saved / more * 1e6:.2g} nats a token saved by each MB" if more > 0 else f"{saved:.2g} nats a token saved"


def _mb(size: int) -> str:
    return f"{size / 1e6:.4g} MB" if abs(size) >= 1e5 else f"{size / 1e6:.2g} MB"
