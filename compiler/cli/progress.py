"""Events on stderr: lines for a reader, or one JSON document per line for a program.

For a reader there is a line per message, and while a stage is silent which one it is and how long it has taken. On a
terminal that is the last line, rewritten every second; elsewhere a line of its own every half minute. There is no
colour anywhere, so none has to be switched off.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from abc import abstractmethod
from collections import defaultdict
from typing import TypeAlias

from compiler.driver.events import (
    DeviceFinished,
    DeviceStarted,
    Event,
    Level,
    Note,
    Progress,
    StageBegan,
    StageEnded,
    TrialJudged,
    TrialStarted,
    event_json,
)

TICK_S, PATIENCE_S = 1.0, 30.0
"""Seconds between two looks; seconds of silence after which a line is due where nothing can be rewritten."""

WORTH_TELLING_S = 5.0
"""Less time than this is not worth an estimate."""

CLEAR = "\r\x1b[K"

_STARTED = time.monotonic()

Told: TypeAlias = DeviceStarted | DeviceFinished | TrialStarted | TrialJudged | Note
"""Events that are lines for a reader."""

_LEVELS = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}


class Reporter(logging.Handler):
    """Shows events on stderr; records of the log are notes among them.

    Args:
        least: Notes and records below this level are left out: one of `logging`'s.
    """

    def __init__(self, *, least: int) -> None:
        super().__init__(least)
        self._out = sys.stderr
        self._writing = threading.RLock()

    @abstractmethod
    def tell(self, event: Event) -> None:
        """A sink of the driver's events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record of the log."""
        levels = [level for level in Level if _LEVELS[level] <= record.levelno]
        self.tell(Note("", record.getMessage(), levels[-1] if levels else Level.DEBUG))

    def hides(self, event: Event) -> bool:
        """Whether an event is a note that matters too little."""
        return isinstance(event, Note) and _LEVELS[event.level] < self.level


class JsonLines(Reporter):
    """Writes every event as one line of JSON."""

    def tell(self, event: Event) -> None:
        """Writes it."""
        if self.hides(event):
            return
        with self._writing, contextlib.suppress(OSError):  # nobody reads any more; the work goes on
            self._out.write(event_json(event) + "\n")
            self._out.flush()


class Terminal(Reporter):
    """Writes events as lines, and in their silence what is going on.

    Args:
        least: Notes and records below this level are left out. At `logging.DEBUG` stages are lines too; above
            `logging.INFO` only what went wrong is written.
    """

    def __init__(self, *, least: int) -> None:
        super().__init__(least=least)
        self._headlines: dict[str, str] = {}  # device → what was last said of it
        self._left = ""
        # device → its stages and when they began, the innermost last
        self._running: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
        self._spoke = time.monotonic()
        self._is_live = self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._is_drawn = False
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, event: Event) -> None:
        """Writes it, or keeps what it says for the silence after it."""
        with self._writing, contextlib.suppress(OSError):  # nobody reads progress any more; the work goes on
            self._wipe()
            if isinstance(event, StageBegan):
                self._running[event.device].append((event.stage, time.monotonic()))
                self._stage_line(event.stage)
            elif isinstance(event, StageEnded):
                self._running[event.device].pop()
                self._stage_line(f"{event.stage}: {event.seconds:.1f} s")
            elif isinstance(event, Progress):
                self._left = left_text(event.seconds_left)
            elif not self.hides(event) and (text := event_text(event)):
                self._message(event, text)

    def close(self) -> None:
        """Takes the live line away and is silent from now on."""
        with self._writing, contextlib.suppress(OSError):
            self._wipe()
            self._running.clear()
        super().close()

    def _message(self, event: Told, text: str) -> None:
        if not isinstance(event, Note) or event.level == Level.INFO:
            self._headlines[event.device] = text.splitlines()[0]
        is_news = not isinstance(event, Note | DeviceFinished)
        if not (is_news and self.level > logging.INFO):
            self._line(text + self._left if isinstance(event, DeviceStarted | TrialStarted) else text)

    def _stage_line(self, text: str) -> None:
        if self.level <= logging.DEBUG:
            self._line(text)

    def _watch(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            while sys.stderr is self._out:
                time.sleep(TICK_S)
                with self._writing:
                    self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        if self.level > logging.INFO:
            return
        innermost = {device: stages[-1] for device, stages in self._running.items() if stages}
        if not innermost or now - max(self._spoke, *(since for _, since in innermost.values())) < TICK_S:
            return
        text = "; ".join(
            f"{self._headlines.get(device, device)}: {stage}, {duration(now - since)}"
            for device, (stage, since) in innermost.items()
        )
        text += " so far"
        if self._is_live:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(CLEAR + f"{now - _STARTED:8.1f} s  {text}"[:width])
            self._out.flush()
            self._is_drawn = True
        elif now - self._spoke >= PATIENCE_S:
            self._line(text)

    def _line(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._out.write(f"{self._spoke - _STARTED:8.1f} s  {text}\n")
        self._out.flush()

    def _wipe(self) -> None:
        if self._is_drawn:
            self._out.write(CLEAR)
            self._is_drawn = False


def event_text(event: Event) -> str:
    """An event as a line for a reader; empty where there is nothing to read."""
    match event:
        case DeviceStarted():
            return f"{event.device} ({event.number} of {event.count})"
        case DeviceFinished():
            return f"{event.device} failed: {event.error}" if event.error else ""
        case TrialStarted():
            return f"{event.device}: trial {event.number}: {_candidate_text(event)}{_variant_text(event)}"
        case TrialJudged():
            verdict = ": ".join(filter(None, (event.status, event.why)))
            return f"{event.device}: trial {event.number}: {_candidate_text(event)} {verdict}"
        case Note():
            return f"{event.device}: {event.text}" if event.device else event.text
    return ""


def left_text(seconds: float | None) -> str:
    """`; about 40 s left`, to stand behind a message; empty where nothing is known, or it is soon over."""
    return f"; about {duration(seconds)} left" if seconds is not None and seconds >= WORTH_TELLING_S else ""


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _candidate_text(event: TrialStarted | TrialJudged) -> str:
    """The precision, with the target before it where several compete."""
    return f"{event.target} {event.precision}".strip()


def _variant_text(event: TrialStarted) -> str:
    """What is not as the precision is made by default, each part with its comma."""
    options = ", other options of the quantizer" if event.has_options else ""
    float_layers = f", {event.kept_float} layers in float" if event.kept_float else ""
    return options + float_layers + (f", {event.pruned:.0%} pruned" if event.pruned else "")
