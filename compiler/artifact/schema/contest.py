"""The targets that competed for a device: how each came out, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.artifact.schema.measured import Speed


class Standing(StrEnum):
    """How a target came out.

    `won`: its build is delivered; `beaten`: its candidates were tried, and another target's build is better; `slower`:
    it lost the race of the first builds, and its candidates were not tried; `not raced`: nothing here could compare it,
    and a target that is named before it has a build; `failed`: nothing of it could be built.
    """

    WON = "won"
    BEATEN = "beaten"
    SLOWER = "slower"
    NOT_RACED = "not raced"
    FAILED = "failed"


@dataclass(frozen=True)
class Competitor:
    """One of the targets that competed for a device.

    Args:
        target: Its name.
        standing: How it came out.
        why: Why, in words.
        race: Its first build against the first build of the target that the others were measured against; None for that
            one, and where nothing was raced.
        trial: The best of its trials that passed; None if none did.
    """

    target: str
    standing: Standing
    why: str
    race: Speed | None = None
    trial: int | None = None

    def __str__(self) -> str:
        return f"{self.target} {self.standing}" + (f": {self.why}" if self.why else "")
