"""Progress on stderr: a line per message, and while a stage is silent what it is and how long it has taken.

On a terminal that is the last line, rewritten every second; elsewhere a line of its own every half minute. There is no
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

from compiler.driver.clock import duration

TICK_S, PATIENCE_S = 1.0, 30.0
"""Seconds between two looks; seconds of silence after which a line is due where nothing can be rewritten."""

CLEAR = "\r\x1b[K"

_STARTED = time.monotonic()


class Progress(logging.Handler):
    """Writes the records of a command, and in their silence what is going on.

    Args:
        verbose: Whether stages are written as lines too.
    """

    def __init__(self, *, verbose: bool) -> None:
        super().__init__()
        self._verbose, self._out = verbose, sys.stderr
        self._headline = self._step = ""
        self._since = self._spoke = time.monotonic()
        self._is_live = self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._is_drawn = False
        self._drawing = threading.RLock()
        threading.Thread(target=self._watch, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record; one that only says which stage has begun is kept for the silence after it."""
        text = record.getMessage()
        with self._drawing, contextlib.suppress(OSError):  # nobody reads progress any more; the work goes on
            self._wipe()
            if hasattr(record, "step"):
                self._step, self._since = record.step, time.monotonic()
            elif record.levelno == logging.INFO:
                self._headline = text.splitlines()[0]
            if self._verbose or not hasattr(record, "step"):
                self._line(text)

    def close(self) -> None:
        """Takes the live line away and is silent from now on."""
        with self._drawing, contextlib.suppress(OSError):
            self._wipe()
            self._step = ""
        super().close()

    def _watch(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            while sys.stderr is self._out:
                time.sleep(TICK_S)
                with self._drawing:
                    self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        text = f"{self._headline}: {self._step}, {duration(now - self._since)} so far"
        if not self._step or now - max(self._since, self._spoke) < TICK_S:
            return
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
