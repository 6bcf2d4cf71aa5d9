"""What was cut out of a pruned model."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import FiniteFloat


@dataclass(frozen=True)
class Group:
    """Channels that were cut together: how many there were and are, and the error expected of it."""

    name: str
    channels: int
    kept: int
    error: FiniteFloat
    reason: str


@dataclass(frozen=True)
class Repaired:
    """A layer behind a cut: its error before and after it was solved anew, as shares of its energy."""

    layer: str
    before: FiniteFloat
    after: FiniteFloat


@dataclass(frozen=True)
class Check:
    """The metric after some steps of a recovery; higher is better."""

    step: int
    elapsed_s: FiniteFloat
    value: FiniteFloat


@dataclass(frozen=True)
class Recovered:
    """How a pruned model was trained; `metric` is empty where the error of its outputs was judged."""

    metric: str
    steps: int
    seconds: FiniteFloat
    stopped: str
    checks: tuple[Check, ...]
    best: Check

    @property
    def words(self) -> str:
        """What it came to, in one line."""
        before, after = -self.checks[0].value, -self.best.value
        lost = (
            f"{before:.2f} -> {after:.2f} points of {self.metric} lost"
            if self.metric
            else f"error of the outputs {100 * before:.2f} % -> {100 * after:.2f} %"
        )
        return f"recovered in {self.steps} steps ({self.seconds:.0f} s, ended by: {self.stopped}): {lost}"


@dataclass(frozen=True)
class Pruning:
    """What was cut out of the model; `ratio` of the multiply-accumulates, within 0..1."""

    ratio: FiniteFloat
    multiple: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    groups: tuple[Group, ...]
    repaired: tuple[Repaired, ...]
    warnings: tuple[str, ...] = ()
    recovered: Recovered | None = None

    @property
    def cut(self) -> tuple[Group, ...]:
        """The groups that lost channels."""
        return tuple(group for group in self.groups if group.kept < group.channels)
