"""The gates of a device: what accuracy, memory, latency and saliency a build must hold, and the verdict on each.

A limit comes from the fleet file, or from `DEFAULTS` where the file has an evaluation and says nothing. What nobody
could measure or estimate is not judged, and its gate says so; it is never called passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compiler.artifact import Evidence
from compiler.errors import FleetError
from compiler.fleet import DeviceClass, Fleet, Limits, Unjudged, WhenUnjudged

DEFAULTS = Limits(accuracy_drop_pct=2.0, memory_reduction_pct=40.0)
"""What holds where the fleet file has an evaluation and states no limit of its own."""

EMBEDDING = "embedding"
"""The task that compares outputs with the float model's: it needs no labels."""


@dataclass(frozen=True)
class Constraints:
    """What one device's build must hold, decided before anything is built.

    Args:
        limits: Every limit that holds.
        task: Task that accuracy is judged by; empty where nothing judges it.
        data: Which data of the fleet file judge it: `evaluation` or `calibration`.
        reasons: Name of a limit → where it is from, and what becomes of a build that nobody could judge by it.
        unjudged: What becomes of it, by gate.
    """

    limits: Limits = field(default_factory=Limits)
    task: str = ""
    data: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    unjudged: Unjudged = field(default_factory=Unjudged)

    @property
    def any(self) -> bool:
        """Whether there is a gate at all."""
        return any(value is not None for value in asdict(self.limits).values())

    @property
    def explains(self) -> bool:
        """Whether saliency maps are compared: a limit asks, or there is an evaluation whose pictures they can show."""
        return self.limits.saliency_correlation_min is not None or self.data == "evaluation"


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
class Gate:
    """One verdict.

    Args:
        name: `accuracy`, `memory: weights`, `memory: run`, `latency` or `saliency`.
        limit: What must hold, in `unit`.
        value: What was found; None where nobody could tell.
        unit: `points lost`, `% less`, `ms` or `correlation`.
        passed: The verdict; None where the gate was not judged.
        evidence: Where the value is from.
        rule: What of the figure was judged.
        why: Why it was not judged, or what its reader should know.
        unjudged: What becomes of the build where it was not judged.
    """

    name: str
    limit: float
    value: float | None
    unit: str
    passed: bool | None
    evidence: Evidence
    rule: str
    why: str = ""
    unjudged: WhenUnjudged = WhenUnjudged.DELIVER

    @property
    def refuses(self) -> bool:
        """Whether it keeps the build from being delivered."""
        return self.passed is False or (self.passed is None and self.unjudged == WhenUnjudged.FAIL)

    def to_dict(self) -> dict[str, Any]:
        """The gate as a JSON-ready value."""
        return {**asdict(self), "evidence": str(self.evidence), "unjudged": str(self.unjudged)}

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: not judged: {self.why}"
        kind, verdict = _KINDS[self.name], "passed" if self.passed else "failed"
        bound = "at least" if kind.is_floor else "at most"
        value, limit = round(self.value, kind.places + 1), f"limit {bound} {self.limit:g}"
        found = f"{value:g} {self.unit}, {limit}"
        if self.unit == LESS and value < 0:
            found = f"{-value:g} % more, {limit} {LESS}"
        return f"{self.name} {verdict}: {found} ({self.rule}; {self.evidence})"


@dataclass(frozen=True)
class _Kind:
    """How a gate judges.

    Args:
        limit: Its limit in the fleet file.
        key: Its name under `unjudged` there.
        unit: Its figure's.
        is_floor: Whether the limit is the least that must be found.
        lowest: The least that can be asked.
        places: Decimals that a person writes the limit with.
    """

    limit: str
    key: str
    unit: str
    is_floor: bool = False
    lowest: float = 0.0
    places: int = 1


LESS = "% less"

_KINDS: Mapping[str, _Kind] = {
    "accuracy": _Kind("accuracy_drop_pct", "accuracy", "points lost"),
    "memory: weights": _Kind("memory_reduction_pct", "memory", LESS, is_floor=True),
    "memory: run": _Kind("memory_reduction_pct", "memory", LESS, is_floor=True),
    "latency": _Kind("latency_ms", "latency", "ms"),
    "saliency": _Kind("saliency_correlation_min", "saliency", "correlation", is_floor=True, lowest=-1.0, places=2),
}
"""Gate → the limit it judges by."""

_NEED_DATA = {
    "accuracy_drop_pct": "the loss of accuracy",
    "saliency_correlation_min": "the change of saliency maps",
}
"""Limit → what it limits, of those that samples are needed for."""


SAME_DATA = "calibration and evaluation are the same data: accuracy on what was fitted is too good"


def make_constraints(fleet: Fleet, device: DeviceClass, *, strict: bool = False) -> Constraints:
    """The limits of one device with the defaults below them, and the task its accuracy is judged by.

    Args:
        fleet: The fleet file.
        device: One of its device classes.
        strict: Whether a build fails by every gate that nobody could judge, whatever the file says.

    Raises:
        FleetError: A limit on accuracy or saliency is stated, and there are no data to judge it on.
    """
    made = _limits_of(fleet, device)
    unjudged = Unjudged(**dict.fromkeys(vars(Unjudged()), WhenUnjudged.FAIL)) if strict else device.unjudged
    reasons = {name: f"{why}; {_outcome(name, unjudged)}" for name, why in made.reasons.items()}
    return replace(made, reasons=reasons, unjudged=unjudged)


def _outcome(limit: str, unjudged: Unjudged) -> str:
    """What becomes of a build that nobody could judge by a limit, in words."""
    key = next(kind.key for kind in _KINDS.values() if kind.limit == limit)
    return f"where it cannot be judged: {getattr(unjudged, key) or WhenUnjudged.DELIVER}"


def _limits_of(fleet: Fleet, device: DeviceClass) -> Constraints:
    stated = {name: value for name, value in asdict(device.limits).items() if value is not None}
    reasons = dict.fromkeys(stated, "stated in the fleet file")
    if fleet.evaluation is not None:
        given = {name: value for name, value in asdict(DEFAULTS).items() if value is not None and name not in stated}
        reasons |= dict.fromkeys(given, "the default where the fleet file has an evaluation")
        if fleet.calibration is not None and fleet.calibration.path == fleet.evaluation.path:
            reasons = {name: f"{why}; {SAME_DATA}" if name in _NEED_DATA else why for name, why in reasons.items()}
        return Constraints(Limits(**stated, **given), fleet.evaluation.task, "evaluation", reasons)
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
        "; the file has no evaluation: outputs on a half of the calibration data, which nothing is fitted to, are "
        "compared with the float model's"
    )
    return Constraints(Limits(**stated), EMBEDDING, "calibration", reasons)


def judge_gates(limits: Limits, figures: Mapping[str, Figure], *, unjudged: Unjudged | None = None) -> tuple[Gate, ...]:
    """One verdict per limit and figure.

    Args:
        limits: What must hold.
        figures: Gate's name → what is judged; a missing one counts as not measured.
        unjudged: What becomes of a build by the gate that nobody could judge; it is delivered if None.
    """
    nothing = Figure(None, Evidence.NONE, why="nothing measured it")
    limited = {name: getattr(limits, kind.limit) for name, kind in _KINDS.items()}
    rules = unjudged or Unjudged()
    return tuple(
        _judge(name, limit, figures.get(name, nothing), rules) for name, limit in limited.items() if limit is not None
    )


def hold(gates: Sequence[Gate]) -> bool:
    """Whether no gate refuses the build; one that was not judged does where the fleet file asks for that."""
    return not any(gate.refuses for gate in gates)


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


def _judge(name: str, limit: float, figure: Figure, unjudged: Unjudged) -> Gate:
    kind = _KINDS[name]
    passed = None
    if figure.value is not None:
        passed = figure.value >= limit if kind.is_floor else figure.value <= limit
    outcome = getattr(unjudged, kind.key) or WhenUnjudged.DELIVER
    fails = passed is None and outcome == WhenUnjudged.FAIL
    why = f"{figure.why}; this fails the build (`unjudged: fail`)" if fails else figure.why
    return Gate(name, limit, figure.value, kind.unit, passed, figure.evidence, figure.rule, why, outcome)


def _rounded(value: float, kind: _Kind) -> float:
    """To the places of a limit, on the side that the value holds."""
    unit: float = 10.0**kind.places
    scaled = round(value * unit, 6)
    return max(kind.lowest, math.floor(scaled) / unit) if kind.is_floor else math.ceil(scaled) / unit
