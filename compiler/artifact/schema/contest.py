"""The targets that competed for a device: how each came out, and why; and the last races between the best builds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.artifact.schema.measured import Speed, SpeedUnit


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


class Settled(StrEnum):
    """What settled a last race.

    `faster`: one build is clearly faster. `smaller`: both are about as fast. `open`: the race could not tell them
    apart, or there was none. Of builds that are about as fast, and where it is open, the smaller one goes on; of equal
    sizes the one of the target that the device names first.
    """

    FASTER = "faster"
    SMALLER = "smaller"
    OPEN = "open"


@dataclass(frozen=True)
class FinalRace:
    """Two builds that pass and whose speeds against float32 leave open which is faster, raced against each other.

    Args:
        winner: The trial that goes on.
        loser: The other.
        names: What they are, in this order.
        settled: What settled it.
        speed: The winner's speed against the loser's, where they were raced.
        why: Why they were not; empty where they were.
    """

    winner: int
    loser: int
    names: tuple[str, str]
    settled: Settled
    speed: Speed | None = None
    why: str = ""

    def __str__(self) -> str:
        winner, loser = self.names
        how = {
            Settled.FASTER: f"{winner} is faster than {loser}",
            Settled.SMALLER: f"{winner} is about as fast as {loser}, and goes on by its size",
            Settled.OPEN: f"open whether {winner} or {loser} is faster, and {winner} goes on by its size",
        }[self.settled]
        return f"last race: {how}: {self._measured}"

    @property
    def _measured(self) -> str:
        if self.speed is None:
            return self.why
        by = " by processor time on one processor" if self.speed.unit == SpeedUnit.PROCESSOR_MS else ""
        doubt = f"; disturbed: {self.speed.disturbed}" if self.speed.disturbed else ""
        return f"{self.speed.ratio_figure} × its speed{by} ({self.speed.evidence}{doubt})"
