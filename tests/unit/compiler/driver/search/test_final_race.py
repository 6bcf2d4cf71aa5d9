"""Which of the best builds goes on, by the pairs of blocks that their race measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import Footprint, GateName, Purpose, Settled, Speed, SpeedUnit
from compiler.driver.measure.speed import race_speed
from compiler.driver.search.final_race import settle_race
from compiler.driver.search.select import beaten_by, contenders, out_of_reach
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.evaluate.gates import Gate
from compiler.target.request import RaceAnswer

NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.002, 0.998, 1.0)
"""What each block of a quiet race is off by."""


def trial(
    number: int,
    speedup: float,
    *,
    spread: float = 0.01,
    mib: float = 5.0,
    disturbed: str = "",
    passed: bool = True,
    evidence: Evidence = Evidence.HOST,
) -> Trial:
    """A candidate with that speed against float32, and that much payload."""
    low, high = speedup * (1 - spread), speedup * (1 + spread)
    speed = Speed(speedup, 1.0, speedup, SpeedUnit.MS, evidence, low=low, high=high, disturbed=disturbed)
    weights = Footprint(int(mib * 2**20), Evidence.HOST, None, Evidence.NONE)
    lost = 0.0 if passed else 9.0
    gate = Gate(GateName.ACCURACY, 2.0, lost, "points lost", passed, Evidence.HOST, "point")
    made = object.__new__(BuiltCandidate)  # that something was made counts, not what
    target = ("openvino", "tvm", "onnxruntime")[number - 1]
    return Trial(number, Purpose.CANDIDATE, "int8", made, gates=(gate,), footprint=weights, speed=speed, target=target)


def raced(ms: float, other_ms: float, *, noise: float = 1.0) -> Speed:
    """The race of a build that takes so many milliseconds against one that takes so many."""
    own = tuple(ms * (1 + noise * (off - 1)) for off in NOISE)
    others = tuple(other_ms * (1 - noise * (off - 1)) for off in NOISE)
    return race_speed(RaceAnswer((own, others), (own, others)), note="")


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def test_builds_whose_intervals_meet_are_raced_and_others_are_not() -> None:
    assert numbers(contenders([trial(1, 3.2), trial(2, 3.25), trial(3, 2.0)])) == [1, 2]
    assert contenders([trial(1, 3.2), trial(2, 2.5)]) == []
    assert numbers(contenders([trial(1, 3.2), trial(2, 2.5, spread=0.3)])) == [1, 2]


def test_a_disturbed_figure_leaves_open_who_is_the_fastest_however_slow_it_says_the_build_is() -> None:
    assert numbers(contenders([trial(1, 4.1, disturbed="busy"), trial(2, 2.0, disturbed="busy")])) == [1, 2]
    assert numbers(contenders([trial(1, 4.1), trial(2, 2.0, disturbed="busy")])) == [1, 2]


def test_nothing_is_raced_that_does_not_pass_or_that_an_emulator_counted() -> None:
    busy = trial(1, 4.1, disturbed="busy")
    assert contenders([busy, trial(2, 4.0, passed=False)]) == []
    counted = [trial(number, 2.0, evidence=Evidence.EMULATOR) for number in (1, 2)]
    assert contenders([replace(one, speed=replace(one.speed, unit=SpeedUnit.INSTRUCTIONS)) for one in counted]) == []


def test_a_disturbed_speed_rules_no_other_candidate_out() -> None:
    busy, quiet = trial(1, 4.1, disturbed="busy"), trial(1, 4.1)
    lost = trial(2, 2.0, passed=False)
    assert out_of_reach(2.0, [quiet]) is quiet and out_of_reach(2.0, [busy]) is None
    assert beaten_by(lost, [lost, quiet]) is quiet and beaten_by(lost, [lost, busy]) is None


@pytest.mark.parametrize(("ms", "winner"), [(1.2, 2), (2.0, 1)])
def test_the_clearly_faster_build_goes_on_whatever_its_size(ms: float, winner: int) -> None:
    race = settle_race(trial(2, 3.0, mib=9.0 if winner == 2 else 1.0), trial(1, 3.0), raced(ms, 1.6))
    assert (race.winner, race.settled) == (winner, Settled.FASTER)
    assert race.speed is not None and race.speed.low is not None and race.speed.low > 1.03, "seen from the winner"


@pytest.mark.parametrize(("mib", "winner"), [(4.0, 2), (6.0, 1), (5.0, 1)])
def test_of_builds_that_are_about_as_fast_the_smaller_goes_on_and_of_equal_ones_the_first(
    mib: float, winner: int
) -> None:
    race = settle_race(trial(2, 3.0, mib=mib), trial(1, 3.0), raced(1.59, 1.6, noise=0.5))
    assert (race.winner, race.settled) == (winner, Settled.SMALLER)


@pytest.mark.parametrize("ms", [1.2, 1.6, 2.1])
@pytest.mark.parametrize(("mib", "winner"), [(4.0, 2), (6.0, 1), (5.0, 1)])
def test_what_a_race_leaves_open_does_not_depend_on_what_it_measured(ms: float, mib: float, winner: int) -> None:
    race = settle_race(trial(2, 3.0, mib=mib), trial(1, 3.0), raced(ms, 1.6, noise=40.0))
    assert (race.winner, race.settled) == (winner, Settled.OPEN)
    assert "open whether" in str(race) and "±" in str(race)


def test_builds_that_cannot_be_raced_are_settled_by_size_with_the_reason() -> None:
    race = settle_race(trial(2, 9.0, mib=6.0), trial(1, 3.0), None, why="not raced: no such device here")
    assert (race.winner, race.settled) == (1, Settled.OPEN)
    assert str(race) == (
        "last race: open whether openvino int8 or tvm int8 is faster, and openvino int8 goes on by its size: "
        "not raced: no such device here"
    )


def test_a_race_by_processor_time_is_told_as_one() -> None:
    speed = replace(raced(1.2, 1.6), unit=SpeedUnit.PROCESSOR_MS)
    told = str(settle_race(trial(2, 3.0), trial(1, 3.0), speed))
    assert told.startswith("last race: tvm int8 is faster than openvino int8: 1.33")
    assert told.endswith("× its speed by processor time on one processor (measured-host)")
