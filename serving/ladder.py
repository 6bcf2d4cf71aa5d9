"""The ladder: the builds of one model from the most accurate to the cheapest, what each costs, and which is in use.

Everything here is a function of the time it is given, so that a simulation and the server run the same code.
A rung is stepped down at once and climbed back only after a dwell time in which nothing below it was needed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SLO_MS = 50.0
"""Time of a request where neither it nor the fleet file says one."""

DWELL_S = 0.15
"""Seconds in which no lower rung was needed before a higher one is used again."""

CLIMB_EVERY_S, MOST_CLIMBS = 2.5, 6.0
"""Seconds that each climb costs of an account that holds so many of them: bursts may climb soon, not for ever."""

QUANTILE, MIDDLE = 0.95, 0.5
"""Of the last runs: how late one of them may be against the prediction, and what they take on the whole."""

WINDOW = 64
"""Runs that a prediction follows: at 95 %, the fourth slow one is believed."""

MANY_RUNS, FEW_QUANTILE = 20, 0.75
"""Runs from which on the 95th percentile is told from the slowest, and the quantile of fewer."""

FRESH_S = 10.0
"""Seconds after which a run says nothing of the machine any more."""

LEAST_RUNS = 5
"""Runs of a rung's own before they are believed over those of the whole machine."""

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
"""Seconds before a build that failed twice is tried again, and the most: doubled each time; the first time at once."""

FORGIVEN_S = 300.0
"""Seconds of good service after which earlier failures of a build no longer lengthen the wait."""


class Reason(StrEnum):
    """Why another build answers."""

    LOAD = "load"
    RECOVERED = "recovered"
    MEMORY = "memory"
    CRASHED = "crashed"
    NAN = "nan"
    LOADED = "loaded"
    STARTING = "starting"


@dataclass(frozen=True)
class Rung:
    """One build on the ladder.

    Args:
        name: What answers and metrics call it.
        accuracy: Relative to the float model: 1 is as accurate.
        service_s: Batch size → seconds of one run, as the build measured it (95th percentile); none where it did not.
        memory_bytes: What the model itself takes when it runs; 0 where nobody measured it.
        is_degraded: Whether it is delivered under the fleet's `degraded:` limits alone.
    """

    name: str
    accuracy: float
    service_s: Mapping[int, float]
    memory_bytes: int = 0
    is_degraded: bool = False


@dataclass(frozen=True)
class Switch:
    """Another build answers from now on.

    Args:
        at_s: When.
        source: The build before; empty where there was none.
        target: The build now; empty where none is left.
        reason: Why.
    """

    at_s: float
    source: str
    target: str
    reason: Reason


def fill_sizes(measured: Mapping[int, float], largest: int) -> list[float]:
    """Seconds of a run at every batch size from 1 to `largest`, never falling.

    Between measured sizes it is interpolated; beyond the last it grows as from the one before, or in proportion.

    Args:
        measured: Batch size → seconds.
        largest: The largest size.
    """
    sizes = sorted(measured)
    times: list[float] = []
    for size in range(1, largest + 1):
        value = _between(sizes, measured, size)
        times.append(max(value, times[-1] if times else 0.0))
    return times


def _between(sizes: Sequence[int], measured: Mapping[int, float], size: int) -> float:
    place = bisect_left(sizes, size)
    if place < len(sizes) and (sizes[place] == size or place == 0):
        return measured[sizes[place]]  # below the smallest: a batch is padded up to it
    if place == len(sizes) and len(sizes) == 1:
        return measured[sizes[0]] * size / sizes[0]
    place = min(place, len(sizes) - 1)
    low, high = sizes[place - 1], sizes[place]
    return measured[low] + (measured[high] - measured[low]) * (size - low) / (high - low)


class ServiceTimes:
    """Predicts the seconds of a run: the build's own measurement, as the last runs went, and the way to it and back.

    Runs that follow each other take the sum of what each takes on the whole; the sum of their slowest twentieths would
    be far more than the slowest twentieth of their sum. So how late the last may be is added once, by `margin_s`.

    Args:
        rungs: The ladder.
        largest: The largest batch.
        default_s: Assumed of one item where the build measured nothing.
    """

    def __init__(self, rungs: Sequence[Rung], largest: int, *, default_s: float = 0.01) -> None:
        self._base = {rung.name: fill_sizes(rung.service_s or {1: default_s}, largest) for rung in rungs}
        self._own = {rung.name: _Window() for rung in rungs}
        self._lateness = {rung.name: _Window() for rung in rungs}
        self._machine, self._around = _Window(), _Window()

    def curve(self, name: str, now_s: float) -> list[float]:
        """Seconds of a run on a build: of 1 item, of 2, and so on."""
        scale, around_s = self._scale(name, now_s), self._around.quantile(now_s, MIDDLE) or 0.0
        return [seconds * scale + around_s for seconds in self._base[name]]

    def margin_s(self, name: str, now_s: float) -> float:
        """Seconds by which one in twenty of a build's last runs took longer than predicted; at least 0."""
        return max(0.0, self._lateness[name].quantile(now_s, QUANTILE) or 0.0)

    def hopeful(self, name: str, now_s: float) -> list[float]:
        """The least that runs may take: as the build measured them, where they have been slower since."""
        return [min(pair) for pair in zip(self._base[name], self.curve(name, now_s), strict=True)]

    def rebase(self, name: str, measured: Mapping[int, float]) -> None:
        """Starts from other measurements of a build: those of this machine, where the build has none."""
        self._base[name] = fill_sizes(measured, len(self._base[name]))

    def observe(self, name: str, size: int, seconds: float, now_s: float, *, around_s: float = 0.0) -> None:
        """Notes what a run took, and what its way to the build and back took beside."""
        self._lateness[name].add(seconds + around_s - self.curve(name, now_s)[size - 1], now_s)
        ratio = seconds / self._base[name][size - 1]
        self._own[name].add(ratio, now_s)
        self._machine.add(ratio, now_s)
        self._around.add(around_s, now_s)

    def _scale(self, name: str, now_s: float) -> float:
        """A build that has not run lately is as slow as the machine is now: a throttled one slows them all."""
        own = self._own[name].quantile(now_s, MIDDLE)
        return own or self._machine.quantile(now_s, MIDDLE) or 1.0


@dataclass
class _Window:
    """The last figures, in order of time and in order of size."""

    recent: deque[tuple[float, float]] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def add(self, figure: float, now_s: float) -> None:
        self.recent.append((now_s, figure))
        insort(self.ordered, figure)
        if len(self.recent) > WINDOW:
            self._drop_first()

    def quantile(self, now_s: float, share: float) -> float | None:
        while self.recent and self.recent[0][0] < now_s - FRESH_S:
            self._drop_first()
        count = len(self.ordered)
        if count < LEAST_RUNS:
            return None
        # of fewer than twenty runs the 95th percentile is the slowest, and one hiccup would speak for all
        share = share if count >= MANY_RUNS else min(share, FEW_QUANTILE)
        return self.ordered[min(count - 1, int(share * count))]

    def _drop_first(self) -> None:
        _, figure = self.recent.popleft()
        del self.ordered[bisect_left(self.ordered, figure)]


@dataclass(frozen=True)
class Absence:
    """A build that was taken out: why, when it is tried again, and how often in a row it failed."""

    reason: Reason
    retry_at_s: float
    failures: int


class Ladder:
    """Which build is in use, and which may be.

    Args:
        rungs: The most accurate first.
        dwell_s: Seconds without need of a lower rung before a higher one is used again.
    """

    def __init__(self, rungs: Sequence[Rung], *, dwell_s: float = DWELL_S) -> None:
        if not rungs:
            raise ValueError("a ladder has at least one rung")
        self.rungs = tuple(rungs)
        self.switches: list[Switch] = []
        self._dwell_s = dwell_s
        self._level = 0
        self._needs: deque[tuple[float, int]] = deque()
        self._climbs, self._counted_at_s = MOST_CLIMBS, 0.0
        self._absent: dict[str, Absence] = {}
        self._failures: dict[str, tuple[int, float]] = {}

    @property
    def level(self) -> int:
        """Place of the build in use."""
        return self._level

    @property
    def current(self) -> Rung:
        """The build in use."""
        return self.rungs[self._level]

    def usable(self) -> list[int]:
        """Places of the builds that may be used, the most accurate first."""
        return [place for place, rung in enumerate(self.rungs) if rung.name not in self._absent]

    def absence(self, name: str) -> Absence | None:
        """Why a build is out; None where it is not."""
        return self._absent.get(name)

    def due(self, now_s: float) -> list[str]:
        """The builds that were taken out and should be tried again now."""
        return [name for name, absence in self._absent.items() if absence.retry_at_s <= now_s]

    def settle(self, wanted: int, now_s: float) -> int:
        """The place to use where the policy wants `wanted`: lower at once, higher after the dwell time."""
        self._needs.append((now_s, wanted))
        while self._needs[0][0] < now_s - self._dwell_s:
            self._needs.popleft()
        lowest = max(place for _, place in self._needs)
        usable = self.usable()
        if not usable or lowest == self._level:
            return self._level
        place = next((place for place in usable if place >= lowest), usable[-1])
        if place > self._level:
            self._move(place, now_s, Reason.LOAD)
        elif self._may_climb(now_s):
            self._move(place, now_s, Reason.RECOVERED)
        return self._level

    def _may_climb(self, now_s: float) -> bool:
        """Takes one climb from the account, if there is one in it."""
        earned = (now_s - self._counted_at_s) / CLIMB_EVERY_S
        self._climbs, self._counted_at_s = min(MOST_CLIMBS, self._climbs + earned), now_s
        if self._climbs < 1.0:
            return False
        self._climbs -= 1.0
        return True

    def expect_all(self, now_s: float) -> None:
        """None of the builds is loaded yet, and all are due."""
        self._absent = {rung.name: Absence(Reason.STARTING, now_s, 0) for rung in self.rungs}

    def take_out(self, name: str, reason: Reason, now_s: float, *, for_s: float | None = None) -> None:
        """No longer uses a build; it is due again after `for_s`, or after a wait that doubles with each failure."""
        count, last_s = self._failures.get(name, (0, now_s))
        count = 1 if now_s - last_s > FORGIVEN_S else count + 1
        self._failures[name] = (count, now_s)
        again_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(count - 2, 10)) if count > 1 else 0.0
        wait_s = again_s if for_s is None else for_s
        self._absent[name] = Absence(reason, now_s + wait_s, count)
        usable = self.usable()
        if usable and self.current.name == name:
            below = next((place for place in usable if place > self._level), usable[-1])
            self._move(below, now_s, reason)

    def postpone(self, name: str, until_s: float) -> None:
        """Does not try an absent build again before `until_s`."""
        absence = self._absent[name]
        self._absent[name] = Absence(absence.reason, until_s, absence.failures)

    def put_back(self, name: str, now_s: float) -> None:
        """Uses a build again that was taken out; the ladder climbs to it as to any other."""
        was_last = not self.usable()
        self._absent.pop(name, None)
        if was_last:
            self._move(next(place for place, rung in enumerate(self.rungs) if rung.name == name), now_s, Reason.LOADED)

    def _move(self, place: int, now_s: float, reason: Reason) -> None:
        if place != self._level:
            self.switches.append(Switch(now_s, self.current.name, self.rungs[place].name, reason))
            self._level = place
