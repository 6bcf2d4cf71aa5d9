"""Plays a trace of arrivals through the scheduler, with a clock that nobody waits for: for tests and for planning.

The metric is that of model switching (HotCloud '20): *effective accuracy*, the sum of the accuracy of all answers in
time over all requests offered.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serving.batching import TICK_S, Batch, Request, Scheduler
from serving.ladder import Ladder, Rung, ServiceTimes, Switch, fill_sizes


@dataclass
class Outcome:
    """What came of a trace.

    Args:
        offered: Requests.
        in_time: Answered before their deadline.
        late: Answered after it.
        refused: Not let in.
        expired: Let in, and given up in the queue.
        accuracy: Sum of the accuracy of those in time.
        answers: When each batch was done, on which build, and how many of it were in time.
        switches: What the ladder did.
    """

    offered: int = 0
    in_time: int = 0
    late: int = 0
    refused: int = 0
    expired: int = 0
    accuracy: float = 0.0
    answers: list[tuple[float, str, int]] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)

    @property
    def in_time_share(self) -> float:
        """Of all that was offered."""
        return self.in_time / self.offered

    @property
    def effective_accuracy(self) -> float:
        """Accuracy of the answers in time, over all that was offered."""
        return self.accuracy / self.offered


def requests_of(arrivals: Sequence[float], slo_s: float) -> list[Request]:
    """One item at each arrival, with the same time for all."""
    return [Request(0, now_s + slo_s, number, now_s) for number, now_s in enumerate(arrivals)]


def simulate(
    rungs: Sequence[Rung],
    requests: Sequence[Request],
    *,
    largest: int,
    actual_s: Callable[[str, int, float], float] | None = None,
) -> Outcome:
    """Plays requests through the scheduler; one batch runs at a time.

    Args:
        rungs: The ladder; one rung for a static build.
        requests: In order of arrival.
        largest: The largest batch.
        actual_s: What a run takes: build, items and the time it starts → seconds; as predicted where None.
    """
    ladder = Ladder(rungs)
    scheduler = Scheduler(ladder, ServiceTimes(rungs, largest), largest=largest)
    measured = {rung.name: fill_sizes(rung.service_s, largest) for rung in rungs}
    takes = actual_s or (lambda name, size, _now_s: measured[name][size - 1])
    outcome = Outcome(offered=len(requests))
    waiting, now_s = deque(requests), 0.0
    while waiting or len(scheduler):
        if not len(scheduler) and waiting:
            now_s = max(now_s, waiting[0].arrival_s)
        _let_in(scheduler, waiting, now_s, outcome)
        outcome.expired += len(scheduler.expire(now_s))
        batch = scheduler.next_batch(now_s)
        if batch is None:
            continue
        started_s, now_s = now_s, now_s + takes(batch.rung, min(batch.size, largest), now_s)
        # who arrives while it runs is judged by when it is predicted to end, not by when it does
        _let_in(scheduler, waiting, now_s, outcome)
        scheduler.finished(batch, started_s, now_s)
        _count(batch, ladder, now_s, outcome)
    outcome.switches = ladder.switches
    return outcome


def _let_in(scheduler: Scheduler, waiting: deque[Request], until_s: float, outcome: Outcome) -> None:
    while waiting and waiting[0].arrival_s <= until_s:
        request = waiting.popleft()
        outcome.refused += scheduler.offer(request, request.arrival_s) is not None


def _count(batch: Batch, ladder: Ladder, now_s: float, outcome: Outcome) -> None:
    in_time = sum(member.deadline_s >= now_s - TICK_S for member in batch.members)
    accuracy = next(rung.accuracy for rung in ladder.rungs if rung.name == batch.rung)
    outcome.in_time += in_time
    outcome.late += len(batch.members) - in_time
    outcome.accuracy += in_time * accuracy
    outcome.answers.append((now_s, batch.rung, in_time))


def poisson(rate: float, seconds: float, *, seed: int, start_s: float = 0.0) -> list[float]:
    """Arrivals of independent clients, `rate` a second on average."""
    return gamma(rate, seconds, seed=seed, cv2=1.0, start_s=start_s)


def gamma(rate: float, seconds: float, *, seed: int, cv2: float, start_s: float = 0.0) -> list[float]:
    """Bursty arrivals: gaps of a gamma distribution whose squared coefficient of variation is `cv2`."""
    draw = random.Random(seed)
    times, now_s = list[float](), start_s
    while (now_s := now_s + draw.gammavariate(1.0 / cv2, cv2 / rate)) < start_s + seconds:
        times.append(now_s)
    return times


def spike(base: float, peak: float, seconds: float, *, at_s: float, for_s: float, seed: int) -> list[float]:
    """Arrivals at one rate with a spike of another in between."""
    return [
        *poisson(base, at_s, seed=seed),
        *poisson(peak, for_s, seed=seed + 1, start_s=at_s),
        *poisson(base, seconds - at_s - for_s, seed=seed + 2, start_s=at_s + for_s),
    ]
