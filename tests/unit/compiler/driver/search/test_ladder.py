"""The ladder of ratios: it climbs until the limit breaks, then closes in; it never measures more than it may."""

from __future__ import annotations

import math

import pytest

from compiler.driver.search.ladder import FINEST, LADDER, Rung, climb


class Model:
    """Loses `slope` points per share pruned, squared, and has no more than `most` to cut."""

    def __init__(self, slope: float, most: float = 1.0) -> None:
        self.slope, self.most, self.asked = slope, most, list[float]()

    def __call__(self, ratio: float) -> Rung:
        self.asked.append(ratio)
        reached = min(ratio, self.most)
        return Rung(ratio, reached, self.slope * reached**2)


def test_it_closes_in_on_the_limit_from_below() -> None:
    model = Model(slope=16.0)  # the limit of 2 points is met at 35 %
    found = climb(model, limit=2.0, budget=20)
    assert found.why == "limit"
    assert model.asked[:4] == [0.1, 0.2, 0.3, 0.45]
    assert [rung.asked for rung in found.held] == sorted(rung.asked for rung in found.held)
    best = found.held[-1]
    assert best.drop <= 2.0 and 0.35 - FINEST <= best.asked <= 0.354


def test_a_model_that_loses_nothing_goes_to_the_top() -> None:
    found = climb(Model(slope=0.0), limit=0.0, budget=20)
    assert found.why == "ladder" and [rung.asked for rung in found.held] == list(LADDER)


def test_it_stops_where_no_more_can_be_cut() -> None:
    model = Model(slope=0.0, most=0.25)
    found = climb(model, limit=2.0, budget=20)
    assert found.why == "channels" and model.asked == [0.1, 0.2, 0.3]
    assert found.held[-1].reached == 0.25


def test_what_breaks_the_limit_at_once_holds_nothing_or_less() -> None:
    assert climb(Model(slope=math.inf), limit=2.0, budget=20).held == ()
    assert [rung.asked for rung in climb(Model(slope=400.0), limit=2.0, budget=20).held] == [0.05]


@pytest.mark.parametrize(("budget", "why"), [(0, "budget"), (2, "budget"), (4, "limit")])
def test_no_more_is_measured_than_the_budget(budget: int, why: str) -> None:
    model = Model(slope=16.0)
    assert climb(model, limit=2.0, budget=budget).why == why
    assert len(model.asked) == budget
