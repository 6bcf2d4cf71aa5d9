"""Tells threads and open event streams of one process that something has changed in the tables."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
    """One bell: the dispatcher waits for it, and so does every open stream."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()
        self.is_closing = False

    def ring(self) -> None:
        """There may be something to hand out, and something to see."""
        self._rung.set()
        self.ring_listeners()

    def ring_listeners(self) -> None:
        """There is something to see."""
        with self._lock:
            listeners = list(self._listeners.items())
        for event, loop in listeners:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)

    def wait_for_ring(self, limit_s: float) -> None:
        """Returns at the next ring, or after a time."""
        self._rung.wait(limit_s)
        self._rung.clear()

    def close(self) -> None:
        """Ends every open stream."""
        self.is_closing = True
        self.ring()

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever something changes."""
        event = asyncio.Event()
        with self._lock:
            self._listeners[event] = asyncio.get_running_loop()
        try:
            yield event
        finally:
            with self._lock:
                del self._listeners[event]
