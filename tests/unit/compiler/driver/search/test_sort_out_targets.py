"""Whose candidates are tried after the race of first builds, and whose build is delivered without gates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import Speed, SpeedUnit, Standing
from compiler.driver.search.contest import Entrant, fastest_first, sort_out


def entrant(name: str, speedup: float | None = None, *, spread: float = 0.01, **more: Any) -> Entrant:
    """A target whose float32 build has that speed against the reference; None: it is not raced."""
    context: Any = SimpleNamespace(job=SimpleNamespace(plan=SimpleNamespace(competes_as=name)))
    if speedup is None:
        return Entrant(context, **more)
    low, high = speedup * (1 - spread), speedup * (1 + spread)
    race = Speed(speedup, 1.0, speedup, SpeedUnit.MS, Evidence.HOST, low=low, high=high)
    return Entrant(context, race, "first", **more)


def tried(entrants: list[Entrant], gains: dict[str, float]) -> list[str]:
    """The targets whose candidates are tried."""
    sorted_out = sort_out(entrants, lambda context: gains.get(context.job.plan.competes_as, 1.0))
    return [entrant.name for entrant in sorted_out if entrant.standing is None]


def first() -> Entrant:
    return entrant("first", is_baseline=True)


@pytest.mark.parametrize(
    ("speedup", "names"),
    [(0.7, ["first"]), (0.95, ["first", "second"]), (1.05, ["first", "second"]), (5.0, ["second"])],
)
def test_only_targets_near_the_fastest_are_tried(speedup: float, names: list[str]) -> None:
    assert tried([first(), entrant("second", speedup)], {}) == names


def test_a_slower_target_is_tried_where_more_is_expected_of_its_precisions() -> None:
    assert tried([first(), entrant("second", 3.0)], {"first": 3.0}) == ["first", "second"]
    assert tried([first(), entrant("second", 4.0)], {"first": 3.0}) == ["second"]
    assert tried([first(), entrant("second", 0.5)], {"first": 1.2, "second": 3.0}) == ["second"]


def test_a_race_that_tells_little_sorts_out_nothing() -> None:
    assert tried([first(), entrant("second", 0.7, spread=0.4)], {}) == ["first", "second"]


def test_a_target_without_a_float32_build_is_tried_and_sorts_out_no_other() -> None:
    assert tried([first(), entrant("second"), entrant("third", 5.0)], {"second": 50.0}) == ["second", "third"]


def test_what_the_race_decided_is_said_with_its_figures() -> None:
    (lead, _) = sort_out([first(), entrant("second", 4.0)], lambda context: 2.0)
    assert lead.standing == Standing.SLOWER
    assert lead.why.startswith("in float32 it has 0.25 × the speed of second (measured-host)")


def test_without_gates_the_fastest_comes_first_and_one_that_is_as_fast_stays_behind() -> None:
    entrants = [first(), entrant("same", 1.02), entrant("fast", 2.0), entrant("slow", 0.5), entrant("fastest", 4.0)]
    names = [one.name for one in fastest_first(entrants)]
    assert names == ["fastest", "fast", "first", "same", "slow"]


def test_a_target_that_cannot_build_or_be_raced_does_not_win_by_it() -> None:
    failed = entrant("failed", standing=Standing.FAILED)
    unraced = entrant("unraced", standing=Standing.NOT_RACED)
    assert [one.name for one in fastest_first([failed, first(), unraced])] == ["first", "unraced"]
