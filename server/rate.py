"""How many requests a key may make: a bucket for each, which fills at a steady rate."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

BURST_S = 10.0
"""So many seconds' worth of requests may come at once."""

MOST_BUCKETS = 10_000
"""Keys that are remembered; beyond that those that are full are forgotten, which changes nothing for them."""


@dataclass
class RateLimit:
    """Requests of each key.

    Args:
        per_s: Requests a second, on average; 0 for no bound.
    """

    per_s: float
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str, *, now: float | None = None) -> float:
        """Takes one request of a key. Returns 0, or how many seconds it has to wait for its next one.

        Args:
            key: Whose.
            now: Seconds of a steady clock; that of this machine where None.
        """
        if not self.per_s:
            return 0.0
        now, most = time.monotonic() if now is None else now, self.per_s * BURST_S
        with self._lock:
            left, then = self._left.get(key, (most, now))
            left = min(most, left + (now - then) * self.per_s)
            if left < 1:
                self._left[key] = left, now
                return (1 - left) / self.per_s
            self._left[key] = left - 1, now
            if len(self._left) > MOST_BUCKETS:
                self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        self._left = {key: (left, then) for key, (left, then) in self._left.items() if now - then < BURST_S}
