"""A gate: one limit, the figure that was judged by it, the verdict, and its wording."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import FiniteFloat

from compiler.artifact.adapter import Number
from compiler.artifact.artifact import Evidence
from compiler.fleet import WhenUnjudged

MOST_PLACES = 9
"""Decimals beyond which a figure is not told from its limit any more."""


class GateName(StrEnum):
    """What a gate judges."""

    ACCURACY = "accuracy"
    MEMORY_WEIGHTS = "memory: weights"
    MEMORY_RUN = "memory: run"
    MEMORY_PEAK = "memory: process"
    LATENCY = "latency"
    SALIENCY = "saliency"


class GateUnit(StrEnum):
    """The unit of a gate's figure and limit."""

    POINTS_LOST = "points lost"
    PERCENT_LESS = "% less"
    MS = "ms"
    MIB = "MiB"
    CORRELATION = "correlation"


@dataclass(frozen=True)
class Gate:
    """One verdict.

    Args:
        name: What is judged.
        limit: What must hold, in `unit`.
        value: The figure; None where there is none.
        unit: Unit of both.
        passed: The verdict; None where the gate was not judged.
        evidence: Where the value is from.
        rule: What of the figure was judged: `point`, `bound`, `minimum of up to 3 runs`, …
        why: Why it was not judged, or what its reader should know.
        unjudged: What becomes of the build where it was not judged.
    """

    name: GateName
    limit: FiniteFloat
    value: Number
    unit: GateUnit
    passed: bool | None
    evidence: Evidence
    rule: str
    why: str = ""
    unjudged: WhenUnjudged = WhenUnjudged.DELIVER

    @property
    def refuses(self) -> bool:
        """Whether it keeps the build from being delivered."""
        return self.passed is False or (self.passed is None and self.unjudged == WhenUnjudged.FAIL)

    def __str__(self) -> str:
        source = "" if self.passed is None else f" ({self.rule}; {self.evidence})"
        return gate_text(self) + source


@dataclass(frozen=True)
class _Wording:
    """How figures of a unit are written.

    Args:
        places: Decimals.
        is_floor: Whether a limit is the least that must be reached, and not the most that may be.
        opposite: The unit of a negative figure; empty where a negative one is written as it is.
        singular: The unit of a figure that is written as 1; empty where it is the same.
    """

    places: int
    is_floor: bool = False
    opposite: str = ""
    singular: str = ""


_WORDINGS = {
    GateUnit.POINTS_LOST: _Wording(2, opposite="points gained", singular="point lost"),
    GateUnit.PERCENT_LESS: _Wording(1, is_floor=True, opposite="% more"),
    GateUnit.MS: _Wording(2),
    GateUnit.MIB: _Wording(1),
    GateUnit.CORRELATION: _Wording(3, is_floor=True),
}


def is_floor(unit: GateUnit) -> bool:
    """Whether a limit in this unit is the least that must be reached."""
    return _WORDINGS[unit].is_floor


def gate_text(gate: Gate) -> str:
    """A gate with its verdict, without the evidence: `latency failed: 5.2 ms, limit at most 5`."""
    separator = ":" if gate.passed is None else ""
    return f"{gate.name}{separator} {verdict_text(gate)}"


def verdict_text(gate: Gate) -> str:
    """The verdict alone: `failed: 5.2 ms, limit at most 5`, or why there is none."""
    if gate.passed is None or gate.value is None:
        return f"not judged: {gate.why or 'nothing measured it'}"
    wording = _WORDINGS[gate.unit]
    limit = f"limit at {'least' if wording.is_floor else 'most'} {gate.limit:g}"
    if gate.value < 0 and wording.opposite:  # the limit's unit is then not the figure's
        limit += f" {gate.unit}"
    return f"{'passed' if gate.passed else 'failed'}: {_figure(gate, wording)}, {limit}"


def less_text(percent_less: float, *, places: int = 1) -> str:
    """A saving as people write it: `50 % less`; where it is negative `3.2 % more`, or `2.6 times more`."""
    if percent_less < -100:
        return f"{_decimals(-percent_less / 100, 1)} times more"
    return f"{_decimals(abs(percent_less), places)} % {'less' if percent_less >= 0 else 'more'}"


def _figure(gate: Gate, wording: _Wording) -> str:
    value = gate.value or 0.0
    places = _places(value, gate.limit, wording.places)
    if gate.unit == GateUnit.PERCENT_LESS:
        return less_text(value, places=places)
    if value < 0 and wording.opposite:
        return f"{_decimals(-value, places)} {wording.opposite}"
    text = _decimals(value, places)
    return f"{text} {wording.singular if text == '1' and wording.singular else gate.unit}"


def _places(value: float, limit: float, places: int) -> int:
    """As few decimals as tell a figure from its limit, and show anything at all where the limit is tiny."""
    while places < MOST_PLACES and value != limit and round(value, places) == round(limit, places):
        places += 1
    return places


def _decimals(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
