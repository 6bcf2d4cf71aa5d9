"""The gates of a device: what accuracy, memory, latency and saliency a build must hold, and the verdict on each.

A limit comes from the fleet file, or from `DEFAULTS` where the file has an evaluation and says nothing. What nobody
could measure or estimate is not judged, and its gate says so; it is never called passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from compiler.artifact import Evidence
from compiler.artifact.schema import Constraints, Gate, GateData, GateName, GateUnit, is_floor
from compiler.errors import FleetError
from compiler.fleet import DeviceClass, Fleet, Limits

__all__ = [
    "DEFAULTS",
    "EMBEDDING",
    "Constraints",
    "Figure",
    "Gate",
    "GateName",
    "hold",
    "judge_gates",
    "limits_text",
    "make_constraints",
    "nearest_limits",
]

DEFAULTS = Limits(accuracy_drop_pct=2.0, memory_reduction_pct=40.0)
"""What holds where the fleet file has an evaluation and states no limit of its own."""

EMBEDDING = "embedding"
"""The task that compares outputs with the float model's: it needs no labels."""


@dataclass(frozen=True)
class Figure:
    """What a gate judges.

    Args:
        value: The figure in the gate's unit; None where there is none.
        evidence: Where it is from.
        rule: What of it is judged: `point`, `bound`, `minimum of 3 runs`, `median`, `roofline`.
        why: Why there is none, or what its reader should know.
    """

    value: float | None
    evidence: Evidence
    rule: str = "point"
    why: str = ""


@dataclass(frozen=True)
class _Kind:
    """How a gate judges.

    Args:
        limit: Its limit in the fleet file.
        unit: Its figure's.
        lowest: The least that can be asked.
        places: Decimals that a person writes the limit with.
    """

    limit: str
    unit: GateUnit
    lowest: float = 0.0
    places: int = 1

    @property
    def is_floor(self) -> bool:
        """Whether the limit is the least that must be reached."""
        return is_floor(self.unit)


_KINDS: Mapping[GateName, _Kind] = {
    GateName.ACCURACY: _Kind("accuracy_drop_pct", GateUnit.POINTS_LOST),
    GateName.MEMORY_WEIGHTS: _Kind("memory_reduction_pct", GateUnit.PERCENT_LESS),
    GateName.MEMORY_RUN: _Kind("memory_reduction_pct", GateUnit.PERCENT_LESS),
    GateName.LATENCY: _Kind("latency_ms", GateUnit.MS),
    GateName.SALIENCY: _Kind("saliency_correlation_min", GateUnit.CORRELATION, lowest=-1.0, places=2),
}
"""Gate → the limit it judges by."""

_NEED_DATA = {
    "accuracy_drop_pct": "the loss of accuracy",
    "saliency_correlation_min": "the change of saliency maps",
}
"""Limit → what it limits, of those that samples are needed for."""


def make_constraints(fleet: Fleet, device: DeviceClass) -> Constraints:
    """The limits of one device with the defaults below them, and the task its accuracy is judged by.

    Raises:
        FleetError: A limit on accuracy or saliency is stated, and there are no data to judge it on.
    """
    stated = {name: value for name, value in asdict(device.limits).items() if value is not None}
    reasons = dict.fromkeys(stated, "stated in the fleet file")
    if fleet.evaluation is not None:
        given = {name: value for name, value in asdict(DEFAULTS).items() if value is not None and name not in stated}
        reasons |= dict.fromkeys(given, "the default where the fleet file has an evaluation")
        return Constraints(Limits(**stated, **given), fleet.evaluation.task, GateData.EVALUATION, reasons)
    for name in _NEED_DATA:
        if name in stated and fleet.calibration is None:
            raise FleetError(
                f"{name} limits {_NEED_DATA[name]}, and there are no data to measure it on",
                where=device.place,
                remedy="Add `evaluation: {task: …, path: …}`, or `calibration: {path: …}` to compare outputs with the "
                "float model's.",
            )
    if "accuracy_drop_pct" not in stated:
        return Constraints(Limits(**stated), reasons=reasons)
    reasons["accuracy_drop_pct"] += (
        "; the file has no evaluation: outputs on the calibration data are compared with the float model's"
    )
    return Constraints(Limits(**stated), EMBEDDING, GateData.CALIBRATION, reasons)


def judge_gates(limits: Limits, figures: Mapping[GateName, Figure]) -> tuple[Gate, ...]:
    """One verdict per limit and figure.

    Args:
        limits: What must hold.
        figures: Name of a gate → what is judged; a missing one counts as not measured.
    """
    nothing = Figure(None, Evidence.NONE, why="nothing measured it")
    limited = {name: getattr(limits, kind.limit) for name, kind in _KINDS.items()}
    return tuple(
        _judge(name, limit, figures.get(name, nothing)) for name, limit in limited.items() if limit is not None
    )


def hold(gates: Sequence[Gate]) -> bool:
    """Whether no gate failed; one that was not judged fails nothing and is labelled so."""
    return all(gate.passed is not False for gate in gates)


def nearest_limits(gates: Sequence[Gate]) -> Limits:
    """The strictest limits, of those that failed, that these figures would hold; rounded to what a person writes."""
    needed: dict[str, float] = {}
    for gate in gates:
        if gate.passed is False and gate.value is not None:
            kind = _KINDS[gate.name]
            rounded = _rounded(gate.value, kind)
            worst = min if kind.is_floor else max
            needed[kind.limit] = worst(rounded, needed.get(kind.limit, rounded))
    return replace(Limits(), **needed)


def limits_text(limits: Limits) -> str:
    """Limits as the fleet file writes them."""
    pairs = ", ".join(f"{name}: {value:g}" for name, value in asdict(limits).items() if value is not None)
    return f"limits: {{{pairs}}}"


def _judge(name: GateName, limit: float, figure: Figure) -> Gate:
    kind = _KINDS[name]
    passed = None
    if figure.value is not None:
        passed = figure.value >= limit if kind.is_floor else figure.value <= limit
    return Gate(name, limit, figure.value, kind.unit, passed, figure.evidence, figure.rule, figure.why)


def _rounded(value: float, kind: _Kind) -> float:
    """To the places of a limit, on the side that the value holds."""
    unit: float = 10.0**kind.places
    scaled = round(value * unit, 6)
    return max(kind.lowest, math.floor(scaled) / unit) if kind.is_floor else math.ceil(scaled) / unit
