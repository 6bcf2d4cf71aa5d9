"""What every device has that was searched for, delivered or not: plan, trials, gates, layers, and what was selected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pydantic import FiniteFloat

from compiler.artifact.adapter import Number
from compiler.artifact.artifact import Evidence
from compiler.artifact.figures import figure_text
from compiler.artifact.schema.accuracy import Accuracy, Certified
from compiler.artifact.schema.contest import Competitor, FinalRace
from compiler.artifact.schema.gate import Gate, GateName
from compiler.artifact.schema.measured import Footprint, Speed
from compiler.artifact.schema.plan import PlanFacts
from compiler.artifact.schema.saliency import Saliency


class Purpose(StrEnum):
    """Why a trial was made."""

    BASELINE = "baseline"
    CANDIDATE = "candidate"
    OPTIONS = "options"
    FLOAT_FALLBACK = "float fallback"
    PRUNING = "pruning"


class TrialStatus(StrEnum):
    """What came of a trial.

    `passed` its gates; `refused` by a gate; `failed` to be made; `measured`: passes its gates but is only a baseline,
    or its accuracy alone was measured; `skipped`: not made, since what passes is faster than could be expected of it.
    """

    PASSED = "passed"
    REFUSED = "refused"
    FAILED = "failed"
    MEASURED = "measured"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class StageDigest:
    """A finished stage in the store."""

    stage: str
    sha256: str


@dataclass(frozen=True)
class TrialFacts:
    """One candidate that was made and measured.

    Args:
        number: Its place in the search, from 1.
        purpose: Why it was made.
        precision: Its precision.
        status: What came of it.
        why: What it failed at, or why it was not made; empty if it passed.
        pruned: Share of the multiply-accumulates that was cut, 0 to 1.
        kept_float: Layer → why the search keeps it in float.
        options: The quantizer's options; None where its precision is one of floating point.
        warnings: What the quantizer and the pruner say of their data.
        note: Why the search went no further from here, where it ended.
        accuracy: Its accuracy on the data that choose; None where no gate asks.
        saliency: How similar its saliency maps are; None where no gate asks.
        footprint: Its memory.
        speed: Its speed against the float original.
        gates: The verdicts; empty for a trial that was not judged.
        stages: The entries of the store it was made of.
        certified: Its accuracy on data that did not choose it; None where it was not chosen.
        target: Through which target it was made; empty where the device has one.
    """

    number: int
    purpose: Purpose
    precision: str
    status: TrialStatus
    why: str
    pruned: FiniteFloat
    kept_float: Mapping[str, str]
    options: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    note: str
    accuracy: Accuracy | None
    saliency: Saliency | None
    footprint: Footprint | None
    speed: Speed | None
    gates: tuple[Gate, ...]
    stages: tuple[StageDigest, ...]
    certified: Certified | None = None
    target: str = ""

    @property
    def label(self) -> str:
        """The precision, with the target before it where several compete."""
        return f"{self.target} {self.precision}".strip()

    @property
    def accuracy_words(self) -> str:
        """What was lost on the data that chose, and on data that did not; empty where nothing was certified."""
        drop = self.accuracy.drop if self.accuracy else None
        if self.certified is None or drop is None:
            return ""
        chose = figure_text(drop.drop_pct, drop.low_pct, drop.high_pct)
        return f"lost while choosing: {chose} points of {drop.metric}; certified: {self.certified.words}"


@dataclass(frozen=True)
class Layer:
    """One operator of the border model.

    Args:
        node: Its name.
        op: Its operator.
        origin: Nodes of the source model that it was made of.
        precision: What it computes in.
        why: Why that.
        sqnr_db: Signal-to-noise ratio of the model's outputs when this layer alone is in low precision; None where
            nobody measured it.
        share: Its part of the time of one inference, 0 to 1.
        evidence: Where the share is from.
        kernel: What the toolchain runs it as, where it says so; a layer that was fused names the kernel it is in.
    """

    node: str
    op: str
    origin: tuple[str, ...]
    precision: str
    why: str
    sqnr_db: Number
    share: FiniteFloat
    evidence: Evidence
    kernel: str = ""


@dataclass(frozen=True)
class Selection:
    """The precision that is delivered (empty if none is), the trial it is from, and why."""

    precision: str
    trial: int | None
    reason: str


@dataclass(frozen=True)
class Searched:
    """All that was decided, tried and measured for one device.

    Args:
        plan: What was decided before anything was built; of several targets the plan through the one that won.
        decision: What is delivered, and why.
        gates: The verdicts on it.
        trials: All trials, in order.
        layers: Its layers.
        saliency: How similar its saliency maps are.
        contest: The targets that competed, in the order of the profile; none where there is one.
        final_races: The races of the best builds against each other that settled which is delivered, in order.
    """

    plan: PlanFacts
    decision: Selection
    gates: tuple[Gate, ...]
    trials: tuple[TrialFacts, ...]
    layers: tuple[Layer, ...]
    saliency: Saliency | None
    contest: tuple[Competitor, ...] = field(default=(), kw_only=True)
    final_races: tuple[FinalRace, ...] = field(default=(), kw_only=True)

    @property
    def chosen(self) -> TrialFacts | None:
        """The trial that is delivered; None if none is."""
        return next((trial for trial in self.trials if trial.number == self.decision.trial), None)

    @property
    def original(self) -> Footprint | None:
        """The memory of the float original as the memory gates count it; None where the target built none.

        A build may spend memory on speed, and the gates then count less of it than it takes.
        """
        built = next((trial.footprint for trial in self.trials if trial.precision == "fp32" and trial.footprint), None)
        if built is None:
            return None
        weights = self._compared(GateName.MEMORY_WEIGHTS, lambda footprint: footprint.weights_bytes)
        run = self._compared(GateName.MEMORY_RUN, lambda footprint: footprint.run_bytes)
        return replace(built, weights_bytes=weights or built.weights_bytes, run_bytes=run or built.run_bytes)

    def _compared(self, gate_name: GateName, bytes_of: Callable[[Footprint], int | None]) -> int | None:
        """The bytes that a gate's percentages are of; None where it judged nothing."""
        for trial in self.trials:
            size = bytes_of(trial.footprint) if trial.footprint else None
            saved = next((gate.value for gate in trial.gates if gate.name == gate_name), None)
            if size and saved is not None and saved < 100:
                return round(size / (1 - saved / 100))
        return None
