"""Whose candidates are tried after the race of first builds, and whose build is delivered without gates."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import PlannedTarget, Speed, SpeedUnit, Standing
from compiler.driver.search.contest import Entrant, fastest_first, sort_out, standings
from compiler.driver.search.trial import Trial
from compiler.driver.search.trials import why_not_made
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.evaluate.gates import Gate
from compiler.fleet.profile import HardwareProfile
from compiler.target.capability import PrecisionRule

BARE = HardwareProfile(schema=1, name="bare", target="any")
"""A profile that states too little for a roofline."""


def entrant(
    name: str, speedup: float | None = None, *, spread: float = 0.01, disturbed: str = "", **more: Any
) -> Entrant:
    """A target whose float32 build has that speed against the reference; None: it is not raced."""
    job = SimpleNamespace(plan=SimpleNamespace(competes_as=name), profile=BARE)
    context: Any = SimpleNamespace(job=job, options=SimpleNamespace(first=None))
    if speedup is None:
        return Entrant(context, **more)
    low, high = speedup * (1 - spread), speedup * (1 + spread)
    race = Speed(speedup, 1.0, speedup, SpeedUnit.MS, Evidence.HOST, low=low, high=high, disturbed=disturbed)
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


@pytest.mark.parametrize("speedup", [0.2, 5.0])
def test_a_disturbed_race_sorts_out_nothing(speedup: float) -> None:
    assert tried([first(), entrant("second", speedup, disturbed="its threads waited")], {}) == ["first", "second"]


@pytest.mark.parametrize(
    ("speedup", "names"),
    [(1.5, ["first", "second"]), (5.0, ["second"]), (0.3, ["first"])],
    ids=["two threads may make up for it", "faster however they scale", "slower however they scale"],
)
def test_by_processor_time_a_disturbed_race_sorts_out_what_no_number_of_threads_makes_up_for(
    speedup: float, names: list[str]
) -> None:
    raced = entrant("second", speedup, disturbed="its threads waited", threads=2)
    assert raced.race is not None
    by_processor = replace(raced, race=replace(raced.race, unit=SpeedUnit.PROCESSOR_MS))
    assert tried([first(), by_processor], {}) == names


INT8 = PrecisionRule("int8", "it is", converts_graph=False, tolerance="int8", gain=3.5)


def passed(speedup: float) -> Trial:
    """A trial of the first target that passes with that speed-up."""
    speed = Speed(speedup, 1.0, speedup, SpeedUnit.MS, Evidence.HOST, low=speedup, high=speedup)
    gate = Gate("accuracy", 2.0, 0.0, "points lost", True, Evidence.HOST, "point")
    made = object.__new__(BuiltCandidate)  # that something was made counts, not what
    return Trial(1, "candidate", "int8", made, gates=(gate,), speed=speed, target="first")


@pytest.mark.parametrize(
    ("raced", "disturbed", "best", "is_made"),
    [(0.7, "", 2.3, True), (0.7, "", 2.6, True), (0.7, "", 3.0, False), (0.2, "its threads waited", 3.0, True)],
    ids=["promised more than was measured", "within the slack", "out of reach", "nobody knows"],
)
def test_a_slower_targets_candidate_is_left_out_only_where_what_was_measured_is_out_of_its_reach(
    raced: float, disturbed: str, best: float, is_made: bool
) -> None:
    slower = entrant("second", raced, disturbed=disturbed, standing=Standing.SLOWER, why="slower in float32")
    assert (why_not_made(slower, INT8, [passed(best)]) == "") is is_made


def test_a_disturbed_race_counts_where_a_candidate_of_the_target_was_measured() -> None:
    second = entrant("second", 0.7, disturbed="its threads waited")
    assert why_not_made(second, INT8, [passed(3.0)]) == ""
    assert why_not_made(second, INT8, [passed(3.0), replace(passed(2.0), number=2, target="second")]) != ""


def test_a_candidate_that_is_left_out_is_so_by_figures_that_can_be_checked() -> None:
    why = why_not_made(entrant("second", 0.7, standing=Standing.SLOWER), INT8, [passed(3.0)])
    assert "2.72 × float32 at most is expected of it" in why and "first int8 passes with 3.00 ×" in why


def test_what_cannot_be_raced_is_left_out_as_soon_as_something_passes() -> None:
    unraced = entrant("second", standing=Standing.NOT_RACED, why="no GPU here")
    assert why_not_made(unraced, INT8, [passed(1.0)]) == "no GPU here"
    assert why_not_made(unraced, INT8, []) == ""


def test_a_target_none_of_whose_candidates_was_made_came_out_slower() -> None:
    slower = entrant("second", 0.7, standing=Standing.SLOWER)
    skipped = Trial(2, "candidate", "int8", left_out="not made", target="second")
    planned = (PlannedTarget("second"),)
    slower.context.job.plan.targets = planned
    (standing,) = standings([slower], [skipped], None)
    assert standing.standing == Standing.SLOWER
    (standing,) = standings([slower], [replace(passed(2.0), target="second")], None)
    assert standing.standing == Standing.BEATEN


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
