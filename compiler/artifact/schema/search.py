"""What every device has that was searched for, delivered or not: plan, trials, gates, layers, decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import AfterValidator, FiniteFloat

from compiler.artifact.figures import figure_text, ratio_figure, ratio_text, time_text
from compiler.artifact.schema.saliency import Saliency

Number = FiniteFloat | None

ESTIMATED = "estimated"
"""The evidence of a figure that was computed and not measured."""

ALWAYS_CHOSEN = ("precision", "tolerance", "threads")
"""Choices that an artifact is run, judged and finished by."""


@dataclass(frozen=True)
class Choice:
    """One decision of the plan and its reason."""

    value: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a device must hold: points of the metric, percent less memory, milliseconds, correlation of maps."""

    accuracy_drop_pct: Number = None
    memory_reduction_pct: Number = None
    latency_ms: Number = None
    saliency_correlation_min: Number = None


@dataclass(frozen=True)
class PlannedGates:
    """The limits that hold, and where each is from."""

    limits: Limits
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """The sizes that a dimension may have, and the one it is fastest at."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}..{self.max} (fastest at {self.opt})"


@dataclass(frozen=True)
class Candidate:
    """A precision that may be tried."""

    precision: str
    reason: str


def _has_all(choices: Mapping[str, Choice]) -> Mapping[str, Choice]:
    missing = [name for name in ALWAYS_CHOSEN if name not in choices]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    return choices


@dataclass(frozen=True)
class Plan:
    """What was decided before anything was built."""

    profile: str
    profile_digest: str
    target: str
    dims: Mapping[str, Sizes]
    choices: Annotated[Mapping[str, Choice], AfterValidator(_has_all)]
    toolchain: Mapping[str, str]
    gates: PlannedGates
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Gate:
    """One limit and the verdict on it; `passed` is None where it was not judged."""

    name: str
    limit: FiniteFloat
    value: Number
    unit: str
    passed: bool | None
    evidence: str
    rule: str
    why: str
    unjudged: str = "deliver"


@dataclass(frozen=True)
class Score:
    """A metric on a data set with its 95 % interval, in percent."""

    metric: str
    value_pct: Number
    low_pct: Number = None
    high_pct: Number = None
    count: int = 0


@dataclass(frozen=True)
class Accuracy:
    """What a trial lost against the float model, in points of the metric; what it was measured on."""

    evidence: str
    metric: str = ""
    drop_pct: Number = None
    low_pct: Number = None
    high_pct: Number = None
    judged_pct: Number = None
    rule: str = ""
    why: str = ""
    reference: Score | None = None
    candidate: Score | None = None
    measured_on: str = ""
    note: str = ""


@dataclass(frozen=True)
class Certified:
    """What the chosen trial loses on data that did not choose it, in points of the metric."""

    how: str
    metric: str
    drop_pct: Number
    low_pct: Number
    high_pct: Number
    level_pct: FiniteFloat
    rule: str
    judged_pct: Number
    count: int
    agreed: int
    folds: int
    looks: int
    why: str = ""

    @property
    def words(self) -> str:
        """The drop with its interval, and how it was kept apart from the choice among trials."""
        drop = "unknown" if self.drop_pct is None else figure_text(self.drop_pct, self.low_pct, self.high_pct)
        if self.how == "held out":
            apart = f"on a held-out half, {self.count} decisions"
        else:
            apart = f"cross-fit on {self.count} decisions, {self.agreed} of {self.folds} folds chose it"
        return f"{drop} points of {self.metric} ({apart})"


@dataclass(frozen=True)
class Footprint:
    """Bytes of a trial's weights on disk, and of its process when run."""

    weights_bytes: int | None
    weights_evidence: str
    run_bytes: int | None = None
    run_evidence: str = "none"
    why: str = ""


@dataclass(frozen=True)
class Speed:
    """A trial against the float original of the same target: both values in `unit`, smaller is faster."""

    speedup: Number
    unit: str
    evidence: str
    value: Number = None
    original: Number = None
    note: str = ""
    low: Number = None
    high: Number = None
    disturbed: str = ""
    value_high: Number = None

    @property
    def ratio_figure(self) -> str:
        """The speed-up as a number with its interval; empty where nothing tells."""
        if self.speedup is None:
            return ""
        return ratio_figure(self.speedup, self.low, self.high, is_estimate=self.evidence == ESTIMATED)

    @property
    def ratio_words(self) -> str:
        """The speed-up in words; empty where nothing tells."""
        if self.speedup is None:
            return ""
        estimated = self.evidence == ESTIMATED
        return ratio_text(self.speedup, self.low, self.high, is_estimate=estimated, disturbed=self.disturbed)

    @property
    def time_words(self) -> str:
        """The time of one inference in words; empty where there is none."""
        if self.value is None or not self.unit.startswith("ms"):
            return ""
        return time_text(self.value, self.value_high, is_estimate=self.evidence == ESTIMATED)


@dataclass(frozen=True)
class Trial:
    """One candidate that was made and measured."""

    number: int
    purpose: str
    precision: str
    status: str
    why: str
    kept_float: Mapping[str, str]
    accuracy: Accuracy | None
    footprint: Footprint | None
    speed: Speed | None
    gates: tuple[Gate, ...]
    pruned: FiniteFloat = 0.0
    options: Mapping[str, Any] | None = None
    certified: Certified | None = None

    @property
    def accuracy_words(self) -> str:
        """What was lost on the data that chose, and on data that did not; empty where nothing was certified."""
        if self.certified is None or self.accuracy is None or self.accuracy.drop_pct is None:
            return ""
        found = self.accuracy
        chose = figure_text(self.accuracy.drop_pct, found.low_pct, found.high_pct)
        return f"lost while choosing: {chose} points of {found.metric}; certified: {self.certified.words}"


@dataclass(frozen=True)
class Layer:
    """One operator of the artifact; `share` of the time is within 0..1."""

    node: str
    op: str
    precision: str
    why: str
    sqnr_db: Number
    share: FiniteFloat
    evidence: str
    kernel: str


@dataclass(frozen=True)
class Decision:
    """The precision that is delivered (empty if none is), the trial it is from, and why."""

    precision: str
    reason: str
    trial: int | None


@dataclass(frozen=True)
class Searched:
    """All that was decided, tried and found for one device."""

    plan: Plan
    decision: Decision
    gates: tuple[Gate, ...]
    trials: tuple[Trial, ...]
    layers: tuple[Layer, ...]
    saliency: Saliency | None = None

    @property
    def chosen(self) -> Trial | None:
        """The trial that is delivered; None if none is."""
        return next((one for one in self.trials if one.number == self.decision.trial), None)

    @property
    def original(self) -> Footprint | None:
        """The memory of the float original as the memory gates count it; None where the target built none.

        A build may spend memory on speed, and the gates then count less of it than it takes.
        """
        built = next((one.footprint for one in self.trials if one.precision == "fp32" and one.footprint), None)
        if built is None:
            return None
        weights = self._compared("memory: weights", lambda one: one.weights_bytes)
        run = self._compared("memory: run", lambda one: one.run_bytes)
        return replace(built, weights_bytes=weights or built.weights_bytes, run_bytes=run or built.run_bytes)

    def _compared(self, gate: str, bytes_of: Callable[[Footprint], int | None]) -> int | None:
        """The bytes that a gate's percentages are of; None where it judged nothing."""
        for trial in self.trials:
            mine = bytes_of(trial.footprint) if trial.footprint else None
            saved = next((one.value for one in trial.gates if one.name == gate), None)
            if mine and saved is not None and saved < 100:
                return round(mine / (1 - saved / 100))
        return None
