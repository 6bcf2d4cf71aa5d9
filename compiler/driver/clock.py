"""Wall seconds: by stage, for a build's own record of what it spent its time on; and of what is left to do.

Each stage that begins is a debug record of the logger `fleetc.step` whose `step` says its name (empty when it ends): a
terminal shows from it what takes so long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

WORTH_TELLING_S = 5.0
"""Less time than this is not worth an estimate."""

log = logging.getLogger("fleetc.step")


class Clock:
    """Adds up the seconds of each stage; stages of several trials count together.

    Args:
        pace: How far the whole build is.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.pace = pace or Pace(1)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Counts what happens inside to a stage, whether it succeeds or not."""
        started = time.perf_counter()
        log.debug("%s", name, extra={"step": name})
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)
            log.debug("%s: %.1f s", name, time.perf_counter() - started, extra={"step": ""})


@dataclass
class Pace:
    """How long the rest will take, by what the pieces before it took.

    Args:
        pieces: Pieces of work in all: the candidates of every device.
        done: Those behind us.
    """

    pieces: int
    done: int = 0
    _started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> str:
        """`; about 40 s left`, to stand behind a message; empty where nothing tells, or it is soon over."""
        if not self.done:
            return ""
        seconds = (time.monotonic() - self._started) / self.done * max(0, self.pieces - self.done)
        return f"; about {duration(seconds)} left" if seconds >= WORTH_TELLING_S else ""


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
