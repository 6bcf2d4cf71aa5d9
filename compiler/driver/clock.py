"""Wall seconds: of each stage, for a build's own record; and of what is left to do, for who waits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from compiler.driver.events import (
    DeviceStarted,
    Event,
    Level,
    Note,
    Progress,
    Sink,
    StageBegan,
    StageEnded,
    TrialJudged,
    ignore,
)
from compiler.store import StageName

PLANNED = frozenset({"baseline", "candidate"})
"""Purposes of trials that a plan lists; what a search adds to them is not known beforehand."""


class Clock:
    """Adds up the seconds of each stage of one device, and tells of each as it begins and ends.

    Stages of several trials count together. A stage that runs inside another counts for itself alone, so that the
    seconds of all stages add up to the time that passed.

    Args:
        device: The device class.
        sink: Who is told.
    """

    def __init__(self, device: str = "", sink: Sink = ignore) -> None:
        self.seconds: dict[str, float] = {}
        self._device, self.emit = device, sink
        self._running: list[StageName] = []
        self._inside = [0.0]  # seconds of the stages inside each one that is running, the innermost last

    @contextmanager
    def timed(self, stage: StageName) -> Iterator[None]:
        """Counts what happens inside to a stage, whether it succeeds or not; a stage inside itself is one."""
        if self._running[-1:] == [stage]:
            yield
            return
        started = time.perf_counter()
        self._running.append(stage)
        self._inside.append(0.0)
        self.emit(StageBegan(self._device, stage))
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            own = passed - self._inside.pop()
            self._running.pop()
            self._inside[-1] += passed
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + own, 3)
            self.emit(StageEnded(self._device, stage, round(passed, 3)))

    def note(self, text: str, level: Level = Level.INFO) -> None:
        """Tells something about the device."""
        self.emit(Note(self._device, text, level))


class Pace:
    """Passes the events of a fleet's build on, and adds how far it is, by what the candidates so far took.

    Args:
        pieces: How many candidates the plan of each device has, in the order in which they are built.
        sink: Who is told.
    """

    def __init__(self, pieces: Sequence[int], sink: Sink) -> None:
        self._pieces, self._sink = pieces, sink
        self._done, self._started = 0, time.monotonic()

    def __call__(self, event: Event) -> None:
        """A sink."""
        if isinstance(event, DeviceStarted):  # whatever became of those before it, they are behind us
            self._done = sum(self._pieces[: event.number - 1])
            self._sink(self._progress())
        self._sink(event)
        if isinstance(event, TrialJudged) and event.purpose in PLANNED:
            self._done += 1
            self._sink(self._progress())

    def _progress(self) -> Progress:
        total = sum(self._pieces)
        left = max(0, total - self._done)
        passed = time.monotonic() - self._started
        return Progress(min(self._done, total), total, round(passed / self._done * left, 1) if self._done else None)
