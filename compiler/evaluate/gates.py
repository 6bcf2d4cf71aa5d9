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
from compiler.fleet import DeviceClass, Fleet, Limits, Unjudged, WhenUnjudged
from compiler.fleet.data import GENERATION

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

GENERATION_DEFAULTS = Limits(accuracy_drop_pct=2.0)
"""The same for text: 2 percent more perplexity. What its weights may take depends on the device alone."""

EMBEDDING = "embedding"
"""The task that compares outputs with the float model's: it needs no labels."""


@dataclass(frozen=True)
class Figure:
    """What a gate judges.

    Args:
        value: The figure in the gate's unit; None where there is none.
        evidence: Where it is from.
        rule: What of it is judged: `point`, `bound`, `minimum of up to 3 runs`, `median`, `roofline`.
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
        key: Its name under `unjudged` there.
        unit: Its figure's.
        lowest: The least that can be asked.
        places: Decimals that a person writes the limit with.
    """

    limit: str
    key: str
    unit: GateUnit
    lowest: float = 0.0
    places: int = 1

    @property
    def is_floor(self) -> bool:
        """Whether the limit is the least that must be reached."""
        return is_floor(self.unit)


_KINDS: Mapping[GateName, _Kind] = {
    GateName.ACCURACY: _Kind("accuracy_drop_pct", "accuracy", GateUnit.POINTS_LOST),
    GateName.MEMORY_WEIGHTS: _Kind("memory_reduction_pct", "memory", GateUnit.PERCENT_LESS),
    GateName.MEMORY_RUN: _Kind("memory_reduction_pct", "memory", GateUnit.PERCENT_LESS),
    GateName.LATENCY: _Kind("latency_ms", "latency", GateUnit.MS),
    GateName.MEMORY_PEAK: _Kind("memory_mib", "memory", GateUnit.MIB),
    GateName.SALIENCY: _Kind("saliency_correlation_min", "saliency", GateUnit.CORRELATION, lowest=-1.0, places=2),
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


def _of_generation(fleet: Fleet, device: DeviceClass) -> tuple[Limits, dict[str, str]]:
    """The limits with those of language models said by what they limit, and where each is from.

    Raises:
        FleetError: They are stated, and the task or the use of a language model is not.
    """
    limits = device.limits
    reasons = {name: "stated in the fleet file" for name, value in asdict(limits).items() if value is not None}
    pairs = {
        "perplexity_increase_pct": ("accuracy_drop_pct", limits.perplexity_increase_pct, min),
        "tokens_per_s_min": ("latency_ms", limits.tokens_per_s_min and 1e3 / limits.tokens_per_s_min, min),
    }
    task = fleet.evaluation.task if fleet.evaluation else ""
    if limits.perplexity_increase_pct is not None and task != GENERATION:
        raise FleetError(
            "perplexity_increase_pct limits the perplexity of a text, and none is named",
            where=device.place,
            remedy="Add `evaluation: {task: generation, path: text.txt, tokenizer: tokenizer.json}`.",
        )
    if limits.tokens_per_s_min is not None and device.generation is None:
        raise FleetError(
            "tokens_per_s_min is of a language model, and the file does not say how it is used",
            where=device.place,
            remedy="Add `generation: {context: 1024, prefill: 256}`.",
        )
    for name, (meant, value, stricter) in pairs.items():
        if value is None:
            continue
        own = getattr(limits, meant)
        limits = replace(limits, **{meant: value if own is None else stricter(own, value), name: None})
        reasons[meant] = f"by {name}, {reasons.pop(name)}"
    return limits, reasons


def _limits_of(fleet: Fleet, device: DeviceClass) -> Constraints:
    limits, reasons = _of_generation(fleet, device)
    stated = {name: value for name, value in asdict(limits).items() if value is not None}
    if fleet.evaluation is not None:
        usual = GENERATION_DEFAULTS if fleet.evaluation.task == GENERATION else DEFAULTS
        defaults = {name: value for name, value in asdict(usual).items() if value is not None and name not in stated}
        reasons |= dict.fromkeys(defaults, "the default where the fleet file has an evaluation")
        if fleet.calibration is not None and fleet.calibration.path == fleet.evaluation.path:
            reasons = {name: f"{why}; {SAME_DATA}" if name in _NEED_DATA else why for name, why in reasons.items()}
        return Constraints(Limits(**stated, **defaults), fleet.evaluation.task, GateData.EVALUATION, reasons)
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
    return Constraints(Limits(**stated), EMBEDDING, GateData.CALIBRATION, reasons)


def judge_gates(
    limits: Limits, figures: Mapping[GateName, Figure], *, unjudged: Unjudged | None = None
) -> tuple[Gate, ...]:
    """One verdict per limit and figure.

    Args:
        limits: What must hold.
        figures: Name of a gate → what is judged; a missing one counts as not measured.
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


def _judge(name: GateName, limit: float, figure: Figure, unjudged: Unjudged) -> Gate:
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
