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

    @property
    def cut(self) -> tuple[Group, ...]:
        """The groups that lost channels."""
        return tuple(group for group in self.groups if group.kept < group.channels)
