"""What comes of a request: outputs with what is known of them, or the reason why there are none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compiler.target import Arrays
from serving.batching import Refusal
from serving.builds import Build


class Overloaded(Exception):
    """A request that is refused or given up: the answer is 503 and says when to try again."""

    def __init__(self, what: str, retry_after_s: float, wait_s: float) -> None:
        super().__init__(what)
        self.what, self.retry_after_s, self.wait_s = what, retry_after_s, wait_s


class BuildFailed(Exception):
    """The batch of this request is lost with its build: the answer is 503."""


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        build: Which build answered.
        outputs: Name → array.
        is_degraded: Whether a more accurate build is on the ladder.
        queue_s: Seconds it waited.
        run_s: Seconds its batch took.
        batch: Items in that batch.
        is_first: Whether it is the first of its batch.
        is_late: Whether its deadline has passed.
    """

    build: Build
    outputs: Arrays
    is_degraded: bool
    queue_s: float
    run_s: float
    batch: int
    is_first: bool
    is_late: bool

    @property
    def facts(self) -> dict[str, str | bool | float]:
        """What the client is told beside the outputs: the parameters of the response."""
        return {
            "variant": self.build.name,
            "precision": self.build.artifact.precision,
            "manifest_sha256": self.build.manifest_sha256,
            "degraded": self.is_degraded,
            "queue_ms": round(self.queue_s * 1e3, 3),
        }


def overloaded(refusal: Refusal) -> Overloaded:
    """What a client is told of a refusal."""
    if math.isinf(refusal.wait_s):
        return Overloaded("no build is loaded", refusal.retry_after_s, refusal.wait_s)
    what = f"it would be answered in {refusal.wait_s * 1e3:.1f} ms, later than its deadline"
    return Overloaded(what, refusal.retry_after_s, refusal.wait_s)
