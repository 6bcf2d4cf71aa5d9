"""The scheduler: while predictions hold nobody who is let in is late, and the most accurate build that can answers."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.batching import Request, Scheduler
from serving.ladder import CLIMB_EVERY_S, MOST_CLIMBS, Ladder, Reason, Rung, ServiceTimes
from serving.simulate import simulate

RUNGS = (Rung("fp32", 1.0, {1: 0.004, 8: 0.032}), Rung("int8", 0.99, {1: 0.001, 8: 0.006}))


def scheduler(rungs: tuple[Rung, ...] = RUNGS, largest: int = 8) -> tuple[Ladder, Scheduler]:
    ladder = Ladder(rungs)
    return ladder, Scheduler(ladder, ServiceTimes(rungs, largest), largest=largest)


@st.composite
def ladders(draw: st.DrawFn) -> tuple[Rung, ...]:
    """Builds, each faster than the one before; runs grow with the batch, at most in proportion."""
    count, item_s = draw(st.integers(1, 4)), draw(st.floats(0.002, 0.02))
    rungs = []
    for place in range(count):
        shared = draw(st.floats(0.0, 0.9))
        service_s = {size: item_s * (shared + (1 - shared) * size) for size in (1, 4, 16)}
        rungs.append(Rung(f"build{place}", 1.0 - place / 100, service_s))
        item_s *= draw(st.floats(0.3, 0.9))
    return tuple(rungs)


@st.composite
def loads(draw: st.DrawFn) -> list[Request]:
    gaps = draw(st.lists(st.floats(0.0, 0.02), min_size=1, max_size=60))
    now_s, requests = 0.0, []
    for number, gap_s in enumerate(gaps):
        now_s += gap_s
        slo_s, size, group = draw(st.floats(0.001, 0.2)), draw(st.integers(1, 3)), draw(st.integers(0, 1))
        requests.append(Request(0, now_s + slo_s, number, now_s, size, (group,)))
    return requests


@settings(max_examples=150, deadline=None)
@given(rungs=ladders(), requests=loads())
def test_as_long_as_predictions_hold_nobody_who_is_let_in_is_late(
    rungs: tuple[Rung, ...], requests: list[Request]
) -> None:
    ladder = pairwise(rungs)  # the last must be the cheapest at every size
    assume(all(slow.service_s[size] >= fast.service_s[size] for slow, fast in ladder for size in (1, 4, 16)))
    outcome = simulate(rungs, requests, largest=16)
    assert (outcome.late, outcome.expired) == (0, 0)
    assert outcome.in_time + outcome.refused == len(requests)


@settings(max_examples=50, deadline=None)
@given(requests=loads())
def test_batches_hold_one_shape_and_no_more_than_they_may(requests: list[Request]) -> None:
    _, queue = scheduler()
    for request in requests:
        queue.offer(request, request.arrival_s)
        queue.expire(request.arrival_s)
        batch = queue.next_batch(request.arrival_s)
        if batch is not None:
            assert len({member.group for member in batch.members}) == 1
            assert batch.size == sum(member.size for member in batch.members) <= 8
            queue.finished(batch, request.arrival_s, batch.expected_s)


@settings(max_examples=50, deadline=None)
@given(slo_s=st.floats(0.0005, 0.01))
def test_an_idle_server_refuses_only_what_the_cheapest_build_cannot_do(slo_s: float) -> None:
    _, queue = scheduler()
    refusal = queue.offer(Request(0, slo_s, 0, 0.0), 0.0)
    assert (refusal is None) == (slo_s >= 0.001)
    if refusal:
        assert refusal.wait_s == 0.001
        assert math.isclose(refusal.retry_after_s, 0.001 - slo_s)


def test_after_a_slow_moment_an_idle_server_tries_again_and_learns_that_it_is_over() -> None:
    _, queue = scheduler((Rung("only", 1.0, {1: 0.010}),), largest=1)
    now_s = 0.0
    for number in range(30):
        assert queue.offer(Request(0, now_s + 0.05, number, now_s), now_s) is None
        assert queue.expire(now_s) == []
        batch = queue.next_batch(now_s)
        assert batch is not None
        takes_s = 0.2 if number < 6 else 0.010
        queue.finished(batch, now_s, now_s + takes_s)
        now_s += takes_s
    assert queue.offer(Request(0, now_s + 0.05, 30, now_s), now_s) is None
    assert queue.offer(Request(0, now_s + 0.05, 31, now_s), now_s) is not None  # a slow moment is not forgotten yet


def test_a_refusal_says_when_it_would_have_been_done() -> None:
    _, queue = scheduler((Rung("only", 1.0, {1: 0.010}),), largest=1)
    assert queue.offer(Request(0, 0.05, 0, 0.0), 0.0) is None
    assert queue.next_batch(0.0) is not None
    refusal = queue.offer(Request(0, 0.015, 1, 0.0), 0.0)
    assert refusal is not None
    assert math.isclose(refusal.wait_s, 0.020)
    assert math.isclose(refusal.retry_after_s, 0.005)


def test_one_with_an_earlier_deadline_overtakes_unless_that_makes_another_late() -> None:
    _, queue = scheduler((Rung("only", 1.0, {1: 0.010}),), largest=1)
    assert queue.offer(Request(0, 0.100, 0, 0.0), 0.0) is None
    assert queue.offer(Request(0, 0.012, 1, 0.0), 0.0) is None
    assert [member.number for member in queue.queue] == [1, 0]
    assert queue.offer(Request(0, 0.011, 2, 0.0), 0.0) is not None  # the one of 0.012 s would be late
    assert queue.offer(Request(-1, 0.011, 3, 0.0), 0.0) is None  # a higher priority goes first all the same


def test_low_load_is_served_by_the_most_accurate_build_and_a_queue_by_a_cheaper_one() -> None:
    _, queue = scheduler()
    queue.offer(Request(0, 0.05, 0, 0.0), 0.0)
    batch = queue.next_batch(0.0)
    assert batch is not None
    assert (batch.rung, batch.size) == ("fp32", 1)
    queue.finished(batch, 0.0, 0.004)
    for number in range(1, 21):
        queue.offer(Request(0, 0.054, number, 0.004), 0.004)
    batch = queue.next_batch(0.004)
    assert batch is not None
    assert (batch.rung, batch.size) == ("int8", 8)


def test_a_build_that_is_taken_out_gets_nothing_and_without_any_all_are_refused() -> None:
    ladder, queue = scheduler()
    ladder.take_out("fp32", Reason.NAN, 0.0)
    queue.offer(Request(0, 1.0, 0, 0.0), 0.0)
    batch = queue.next_batch(0.0)
    assert batch is not None
    assert batch.rung == "int8"
    queue.failed()
    ladder.take_out("int8", Reason.CRASHED, 0.0)
    refusal = queue.offer(Request(0, 1.0, 1, 0.0), 0.0)
    assert refusal is not None
    assert refusal.wait_s == math.inf
    assert refusal.retry_after_s == 0.0  # it is tried again at once, the first time
    assert queue.next_batch(0.0) is None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), cv2=st.sampled_from([1.0, 8.0]))
def test_it_climbs_no_oftener_than_its_account_allows(seed: int, cv2: float) -> None:
    from serving.simulate import gamma, requests_of

    requests = requests_of(gamma(400.0, 5.0, seed=seed, cv2=cv2), 0.05)
    outcome = simulate(RUNGS, requests, largest=8)
    climbs = sum(switch.reason == Reason.RECOVERED for switch in outcome.switches)
    assert climbs <= MOST_CLIMBS + 5.0 / CLIMB_EVERY_S + 1
