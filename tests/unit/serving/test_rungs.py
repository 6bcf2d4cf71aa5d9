"""The ladder: what a run is predicted to take, when another build answers, and what becomes of one that fails."""

from __future__ import annotations

import pytest

from serving.ladder import (
    CLIMB_EVERY_S,
    DWELL_S,
    FIRST_RETRY_S,
    LEAST_RUNS,
    MOST_CLIMBS,
    Ladder,
    Reason,
    Rung,
    ServiceTimes,
    fill_sizes,
)

RUNGS = (
    Rung("fp32", 1.0, {1: 0.004, 4: 0.016}),
    Rung("int8", 0.99, {1: 0.002, 4: 0.006}),
    Rung("pruned", 0.98, {1: 0.001, 4: 0.004}),
)


def test_sizes_between_measured_ones_are_interpolated_and_beyond_them_grow_as_before() -> None:
    assert fill_sizes({1: 2.0, 3: 4.0}, 5) == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert fill_sizes({2: 2.0}, 4) == [2.0, 2.0, 3.0, 4.0]
    assert fill_sizes({1: 3.0, 2: 1.0}, 3) == [3.0, 3.0, 3.0]  # noise of a measurement: more never takes less


def test_a_prediction_follows_the_last_runs_and_forgets_them() -> None:
    times = ServiceTimes(RUNGS, 4)
    assert times.curve("fp32", 0.0)[0] == pytest.approx(0.004)
    for run in range(LEAST_RUNS):
        times.observe("fp32", 2, 0.016, float(run))
    assert times.curve("fp32", 5.0)[0] == pytest.approx(0.008)
    assert times.curve("int8", 5.0)[0] == pytest.approx(0.004)  # the machine is slow: all builds are
    assert times.curve("fp32", 100.0)[0] == pytest.approx(0.004)


def test_it_steps_down_at_once_and_climbs_after_the_dwell_time() -> None:
    ladder = Ladder(RUNGS)
    assert ladder.settle(0, 0.0) == 0
    assert ladder.settle(2, 1.0) == 2
    assert ladder.settle(0, 1.0 + DWELL_S / 2) == 2
    assert ladder.settle(0, 1.0 + DWELL_S + 0.01) == 0
    assert [(switch.source, switch.target, switch.reason) for switch in ladder.switches] == [
        ("fp32", "pruned", Reason.LOAD),
        ("pruned", "fp32", Reason.RECOVERED),
    ]


def test_climbs_are_rationed_so_that_it_does_not_flap() -> None:
    ladder, seconds = Ladder(RUNGS), 60.0
    now_s = 0.0
    while now_s < seconds:
        now_s += DWELL_S + 0.01
        ladder.settle(2, now_s)
        now_s += DWELL_S + 0.01
        ladder.settle(0, now_s)
    assert len(ladder.switches) <= 2 * (MOST_CLIMBS + seconds / CLIMB_EVERY_S + 1)


def test_a_build_that_fails_is_left_out_ever_longer_and_comes_back() -> None:
    ladder, now_s = Ladder(RUNGS), 0.0
    waits = []
    for _ in range(3):
        ladder.take_out("fp32", Reason.CRASHED, now_s)
        assert ladder.usable() == [1, 2]
        assert ladder.current.name == "int8"
        absence = ladder.absence("fp32")
        assert absence is not None
        waits.append(absence.retry_at_s - now_s)
        assert ladder.due(absence.retry_at_s - 0.01) == []
        assert ladder.due(absence.retry_at_s) == ["fp32"]
        now_s = absence.retry_at_s
        ladder.put_back("fp32", now_s)
        now_s += 1.0
        ladder.settle(0, now_s)
        assert ladder.current.name == "fp32"
    assert waits == pytest.approx([0.0, FIRST_RETRY_S, 2 * FIRST_RETRY_S])


def test_without_any_build_nothing_is_usable_until_one_is_back() -> None:
    ladder = Ladder(RUNGS[:2])
    ladder.take_out("fp32", Reason.MEMORY, 0.0, for_s=30.0)
    ladder.take_out("int8", Reason.CRASHED, 0.0)
    assert ladder.usable() == []
    ladder.put_back("int8", 1.0)
    assert ladder.usable() == [1]
    assert ladder.current.name == "int8"
