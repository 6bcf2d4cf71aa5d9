"""The scheduler of one model: which request is let in, and which of them are run next, together, on which build.

    arrival    refused if it, or one that was let in before it, could then not be in time even on the cheapest build
    dispatch   the first of the queue decides: the most accurate build, and its largest batch, that
               - is done before the deadline of every member,
               - leaves everybody behind in time on the cheapest build, and
               - would clear the whole queue within a part of the time that requests have (`SPARE`)

Requests stand in order of priority, then of deadline. As long as the predictions hold, nobody who was let in is late:
one of a lower priority may be, where a higher one arrives after it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from serving.ladder import Ladder, ServiceTimes

SPARE = 0.8
"""Part of its time in which a request's queue should be cleared by a build: the rest is for who arrives meanwhile."""


@dataclass(frozen=True, order=True)
class Request:
    """One request in the queue, in the order of the queue.

    Args:
        priority: The smaller comes first.
        deadline_s: When its answer must be there.
        number: Numbers requests in order of arrival.
        arrival_s: When it came.
        size: Items, at least 1.
        group: Requests with the same can be run together: the shapes of their items.
    """

    priority: int
    deadline_s: float
    number: int
    arrival_s: float
    size: int = 1
    group: tuple[object, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A request that is not let in.

    Args:
        wait_s: When it would have been done, in seconds from its arrival; infinite where no build is there.
        retry_after_s: Seconds after which it might be let in.
    """

    wait_s: float
    retry_after_s: float


@dataclass(frozen=True)
class Batch:
    """What is run next.

    Args:
        rung: The build.
        members: The requests, in order.
        size: Items of all of them.
        expected_s: When it is predicted to be done.
    """

    rung: str
    members: tuple[Request, ...]
    size: int
    expected_s: float


RATE_WINDOW_S = 0.5
"""Seconds whose arrivals are the load that a build must bear before the ladder climbs to it."""

BEARABLE = 0.95
"""Part of its time that a build may be busy under that load."""

TICK_S = 1e-6
"""What two sums of the same times may differ by: less than any clock tells."""

Curve: TypeAlias = list[float]
"""Seconds of a run of 1 item, of 2, and so on up to the largest batch."""


@dataclass(frozen=True)
class _Tail:
    """The last batch of the queue as the cheapest build would run it, while a batch runs: who comes last extends it."""

    start_s: float
    size: int
    earliest_s: float
    done_s: float
    curve: Curve
    last: Request


class Scheduler:
    """The queue of one model.

    Args:
        ladder: The builds.
        times: What a run takes.
        largest: Items of the largest batch.
    """

    def __init__(self, ladder: Ladder, times: ServiceTimes, *, largest: int) -> None:
        self._ladder, self._times, self._largest = ladder, times, largest
        self._queue: list[Request] = []
        self._free_at_s = -math.inf
        self._tail: _Tail | None = None
        self._arrived: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def queue(self) -> Sequence[Request]:
        """Who waits, in order."""
        return tuple(self._queue)

    def offer(self, request: Request, now_s: float) -> Refusal | None:
        """Lets a request in; or says when it would have been done, where that is too late for it or for others."""
        self._arrived.append((now_s, request.size))
        if self._tail is not None and request > self._tail.last:
            return self._append(request, self._tail, now_s)
        is_idle = not self._queue and self._free_at_s == -math.inf
        # who finds nobody here is let in if the build could do it at its best: or nothing would run, and
        # predictions that one slow moment made would never be corrected
        curve = self._cheapest(now_s, hopeful=is_idle)
        if curve is None:
            return Refusal(math.inf, self._next_retry_s(now_s))
        start_s = max(now_s, self._free_at_s) + (0.0 if is_idle else self._margin_s(now_s))
        place = bisect_left(self._queue, request)
        ahead, behind = self._queue[:place], self._queue[place:]
        batches = list(self._schedule(curve, [*ahead, request], start_s))
        if batches[-1].done_s > request.deadline_s:
            return Refusal(batches[-1].done_s - now_s, batches[-1].done_s - request.deadline_s)
        same = [other for other in behind if other.priority == request.priority]
        if same and not self._all_in_time(curve, [*ahead, request, *same], start_s):
            wait_s = max(batch.done_s for batch in self._schedule(curve, [*self._queue, request], start_s)) - now_s
            return Refusal(wait_s, wait_s)
        self._queue.insert(place, request)
        self._tail = None if behind or self._free_at_s <= now_s else batches[-1]
        return None

    def _append(self, request: Request, tail: _Tail, now_s: float) -> Refusal | None:
        """Lets a request in that comes after all others: the schedule of those is known."""
        longer = self._extend(tail, request) or self._begin(tail.curve, request, tail.done_s)
        if longer.done_s > request.deadline_s:
            return Refusal(longer.done_s - now_s, longer.done_s - request.deadline_s)
        self._queue.append(request)
        self._tail = longer
        return None

    def expire(self, now_s: float) -> list[Request]:
        """Takes those out of the queue that cannot be in time any more even alone on the cheapest build."""
        curve, start_s = self._cheapest(now_s, hopeful=True) or [0.0] * self._largest, now_s - TICK_S
        late = [member for member in self._queue if start_s + self._run_s(curve, member.size) > member.deadline_s]
        gone = {member.number for member in late}
        if late:
            self._tail = None
            self._queue = [member for member in self._queue if member.number not in gone]
        return late

    def next_batch(self, now_s: float) -> Batch | None:
        """Takes the next batch out of the queue; None where nobody waits or no build is there.

        Call `expire` before: the first of the queue can then be in time.
        """
        cheapest = self._cheapest(now_s)
        if not self._queue or cheapest is None:
            return None
        rung, curve = self._choose(cheapest, now_s - TICK_S)
        count = self._count(curve, now_s - TICK_S + self._times.margin_s(rung, now_s)) or 1
        members = tuple(self._queue[:count])
        del self._queue[:count]
        self._tail = None
        size = sum(member.size for member in members)
        self._free_at_s = now_s + self._run_s(curve, size)
        return Batch(rung, members, size, self._free_at_s)

    def finished(self, batch: Batch, started_s: float, now_s: float, *, run_s: float | None = None) -> None:
        """Notes that a batch is done, and what it took; `run_s` of it in the build itself, all of it where None."""
        whole_s = now_s - started_s
        inside_s = whole_s if run_s is None else run_s
        self._times.observe(batch.rung, batch.size, inside_s, now_s, around_s=max(0.0, whole_s - inside_s))
        self._free_at_s, self._tail = -math.inf, None

    def failed(self) -> None:
        """Notes that a batch ended without a result, which says nothing of times."""
        self._free_at_s, self._tail = -math.inf, None

    def _choose(self, cheapest: Curve, now_s: float) -> tuple[str, Curve]:
        """The most accurate build that keeps everybody in time with some to spare, or the one the ladder dwells on."""
        usable = self._ladder.usable()
        curves = {place: self._times.curve(self._ladder.rungs[place].name, now_s) for place in usable}
        level, load = self._ladder.level, self._load(now_s)
        fits = [
            place
            for place in usable[:-1]
            if self._keeps(place, curves[place], cheapest, now_s) and (place >= level or _bears(curves[place], load))
        ]
        place = self._ladder.settle(min(fits, default=usable[-1]), now_s)
        if place not in (*fits, usable[-1]):  # the ladder dwells on a build that is no better here than the one above
            place = self._ladder.settle(next((fit for fit in fits if fit > place), usable[-1]), now_s)
        return self._ladder.rungs[place].name, curves[place]

    def _load(self, now_s: float) -> float:
        """Items that arrived lately, in items a second."""
        while self._arrived and self._arrived[0][0] < now_s - RATE_WINDOW_S:
            self._arrived.popleft()
        return sum(size for _, size in self._arrived) / RATE_WINDOW_S

    def _keeps(self, place: int, curve: Curve, cheapest: Curve, now_s: float) -> bool:
        margin_s = self._margin_s(now_s, place)
        head, count = self._queue[0], self._count(curve, now_s + margin_s)
        if not count:
            return False
        size = sum(member.size for member in self._queue[:count])
        waiting = sum(member.size for member in self._queue)
        run_s = self._run_s(curve, size)
        if math.ceil(waiting / size) * run_s + margin_s > SPARE * (head.deadline_s - head.arrival_s):
            return False
        return self._all_in_time(cheapest, self._queue[count:], now_s + run_s + max(margin_s, self._margin_s(now_s)))

    def _count(self, curve: Curve, now_s: float) -> int:
        """How many of the first in the queue are run together on a build: as many as keep all their deadlines."""
        batch = self._begin(curve, self._queue[0], now_s)
        if batch.done_s > batch.earliest_s:
            return 0
        count = 1
        for member in self._queue[1:]:
            longer = self._extend(batch, member)
            if longer is None:
                break
            batch, count = longer, count + 1
        return count

    def _all_in_time(self, curve: Curve, requests: Sequence[Request], start_s: float) -> bool:
        return all(batch.done_s <= batch.earliest_s for batch in self._schedule(curve, requests, start_s))

    def _schedule(self, curve: Curve, requests: Iterable[Request], start_s: float) -> Iterator[_Tail]:
        """The batches of the requests as one build would run them: each the largest that keeps its deadlines."""
        batch: _Tail | None = None
        for request in requests:
            longer = self._extend(batch, request) if batch else None
            if batch and not longer:
                yield batch
                start_s = batch.done_s
            batch = longer or self._begin(curve, request, start_s)
        if batch:
            yield batch

    def _begin(self, curve: Curve, request: Request, start_s: float) -> _Tail:
        done_s = start_s + self._run_s(curve, request.size)
        return _Tail(start_s, request.size, request.deadline_s, done_s, curve, request)

    def _extend(self, batch: _Tail, request: Request) -> _Tail | None:
        """The batch with one request more; None where it does not belong to it, or would make it late."""
        size = batch.size + request.size
        if request.group != batch.last.group or size > self._largest:
            return None
        earliest_s = min(batch.earliest_s, request.deadline_s)
        done_s = batch.start_s + self._run_s(batch.curve, size)
        if done_s > earliest_s:
            return None
        return _Tail(batch.start_s, size, earliest_s, done_s, batch.curve, request)

    def _run_s(self, curve: Curve, size: int) -> float:
        return curve[min(size, self._largest) - 1]

    def _cheapest(self, now_s: float, *, hopeful: bool = False) -> Curve | None:
        """What runs take on the last build of those that may be used, or take at best; None where there is none."""
        usable = self._ladder.usable()
        if not usable:
            return None
        name = self._ladder.rungs[usable[-1]].name
        return self._times.hopeful(name, now_s) if hopeful else self._times.curve(name, now_s)

    def _margin_s(self, now_s: float, place: int | None = None) -> float:
        """How late a run on a build may be, or on the cheapest that may be used."""
        place = self._ladder.usable()[-1] if place is None else place
        return self._times.margin_s(self._ladder.rungs[place].name, now_s)

    def _next_retry_s(self, now_s: float) -> float:
        waits = [self._ladder.absence(rung.name) for rung in self._ladder.rungs]
        return max(0.0, min((wait.retry_at_s - now_s for wait in waits if wait), default=1.0))


def _bears(curve: Curve, load: float) -> bool:
    """Whether a build's throughput at its best batch is enough for a load in items a second."""
    return load * min(seconds / size for size, seconds in enumerate(curve, start=1)) <= BEARABLE
