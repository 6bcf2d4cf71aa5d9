"""One measurement at a time, and nothing else of any build beside it: a gate between ordinary work and what is timed.

turnstile   held by whoever measures or waits to; whoever begins ordinary work must pass it, so that nobody overtakes
room        held shared by everybody who does ordinary work, and exclusively by the one who measures

Both are lock files in the cache folder: builds of several processes respect each other, and the system lets go of the
locks of a process that is killed. A thread must not wait at the gate while it holds a lock of the store: others that
wait for that lock would keep the room occupied.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.errors import InternalError

POLL_S = 0.02
LIMIT_S = 1800.0
"""Longest time that a measurement waits for what goes on: as long as one step of a toolchain may take by default."""

log = logging.getLogger("fleetc.store")


class TimingGate:
    """The gate of one cache folder.

    Args:
        folder: Where the lock files are; made when first needed.
        limit_s: Longest time to wait for other work before a measurement, in seconds.
    """

    def __init__(self, folder: Path, *, limit_s: float = LIMIT_S) -> None:
        self._folder, self._limit_s = folder, limit_s
        self._own = _Thread()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Ordinary work of this thread, which no measurement runs beside."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def stage(self) -> Iterator[None]:
        """An ordinary stage: the outermost one lets a measurement that waits go first."""
        if not self._own.depth and self._own.room is not None:
            self._make_way()
        self._own.depth += 1
        try:
            yield
        finally:
            self._own.depth -= 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A measurement: waits until all other work pauses; after the limit it says so and measures beside it.

        Raises:
            InternalError: It is part of an ordinary stage.
        """
        if self._own.depth:
            raise InternalError("a measurement is part of a stage that others may wait for")
        is_working = self._own.room is not None
        self._leave()
        deadline = time.monotonic() + self._limit_s
        turnstile = self._wait("turnstile", fcntl.LOCK_EX, deadline)
        room = self._wait("room", fcntl.LOCK_EX, deadline)
        if time.monotonic() >= deadline:
            log.warning("other work went on for %g s: what follows is measured beside it", self._limit_s)
        try:
            yield
        finally:
            _close(room)
            _close(turnstile)
            if is_working:
                self._enter()

    def _make_way(self) -> None:
        turnstile = self._try("turnstile", fcntl.LOCK_SH)
        if turnstile is None:
            self._leave()
            self._enter()
        else:
            _close(turnstile)

    def _enter(self) -> None:
        turnstile = self._wait("turnstile", fcntl.LOCK_SH, None)
        self._own.room = self._wait("room", fcntl.LOCK_SH, None)
        _close(turnstile)

    def _leave(self) -> None:
        _close(self._own.room)
        self._own.room = None

    def _wait(self, name: str, kind: int, deadline: float | None) -> int | None:
        """A handle that holds a lock; None where it was not to be had before the deadline."""
        while (handle := self._try(name, kind)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S)
        return handle

    def _try(self, name: str, kind: int) -> int | None:
        """A handle that holds a lock, -1 where the folder takes no lock files; None where others hold it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # a read-only shared cache still serves its entries; nothing is measured there
            return -1
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        return handle


class _Thread(threading.local):
    """What one thread holds: the room, and how many ordinary stages it is in."""

    room: int | None = None
    depth: int = 0


def _close(handle: int | None) -> None:
    if handle is not None and handle >= 0:
        os.close(handle)
