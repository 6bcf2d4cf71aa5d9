"""One trial of the search: a candidate made, measured and judged; every part of it is kept in the store by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from compiler.artifact import Evidence
from compiler.artifact.schema import (
    Accuracy,
    Certified,
    Footprint,
    Gate,
    GateName,
    Purpose,
    Saliency,
    Speed,
    StageDigest,
    TrialFacts,
    TrialStatus,
)
from compiler.driver.events import Level, TrialJudged, TrialStarted
from compiler.driver.measure.accuracy import accuracy_figure, measure_accuracy
from compiler.driver.measure.memory import compare_footprints, measure_footprint, process_figure, reference_footprint
from compiler.driver.measure.saliency import measure_saliency, saliency_figure
from compiler.driver.measure.speed import latency_figure, measure_speed
from compiler.driver.search.fit_memory import fit_memory
from compiler.driver.search.fit_speed import shorter_time
from compiler.driver.stages.border import Border
from compiler.driver.stages.candidate import BuiltCandidate, build, verify
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.quantize import Variant, options_to_dict, quantizer_warnings
from compiler.driver.stages.recover import read_pruning
from compiler.driver.stages.weights import read_time
from compiler.errors import CompilerError, MissingError, StorageError
from compiler.evaluate.gates import Constraints, Figure, hold, judge_gates
from compiler.plan import settle
from compiler.store import StageName
from compiler.target.capability import PrecisionRule

QUANTIZED = "the model is already quantized: there is no float original to compare with"


@dataclass(frozen=True)
class Trial:
    """What came of one candidate.

    Args:
        number: Its place in the search, from 1.
        purpose: Why it was made.
        precision: Its precision.
        made: What was built; None if nothing could be.
        error: Why not, or how its results differ.
        gates: The verdicts; empty for a trial that was not judged.
        footprint: Its memory.
        speed: Its speed against the float original.
        accuracy: Its accuracy on the data that choose; None where no gate asks.
        certified: Its accuracy on data that did not choose it; None where it was not chosen.
        target: Through which target it is made; empty where the device has one.
        saliency: How similar its saliency maps are; None where no gate asks.
        variant: How it was quantized; None where its precision is one of floating point.
        pruned: Share of the multiply-accumulates that was cut, 0 to 1.
        warnings: What the quantizer and the pruner say of their data.
        note: Why the search went no further from here, where it ended.
        left_out: Why it was not made at all; empty where it was.
    """

    number: int
    purpose: Purpose
    precision: str
    made: BuiltCandidate | None = None
    error: CompilerError | None = None
    gates: tuple[Gate, ...] = ()
    footprint: Footprint | None = None
    speed: Speed | None = None
    accuracy: Accuracy | None = None
    saliency: Saliency | None = None
    variant: Variant | None = None
    pruned: float = 0.0
    warnings: tuple[str, ...] = ()
    note: str = ""
    left_out: str = ""
    certified: Certified | None = None
    target: str = ""

    @property
    def label(self) -> str:
        """The precision, with the target before it where several compete."""
        return f"{self.target} {self.precision}".strip()

    @property
    def kept_float(self) -> Mapping[str, str]:
        """Layer → why the search keeps it in float."""
        return self.variant.kept if self.variant else {}

    @property
    def passed(self) -> bool:
        """Whether it may be delivered."""
        return self.made is not None and self.error is None and hold(self.gates)

    @property
    def status(self) -> TrialStatus:
        """What came of it."""
        if self.left_out:
            return TrialStatus.SKIPPED
        if self.error:
            return TrialStatus.FAILED
        if not hold(self.gates):
            return TrialStatus.REFUSED
        is_for_delivery = self.made is not None and self.purpose != Purpose.BASELINE
        return TrialStatus.PASSED if is_for_delivery else TrialStatus.MEASURED

    @property
    def why(self) -> str:
        """What it failed at, or why it was not made; empty if it passed."""
        if self.left_out:
            return self.left_out
        if self.error:
            return self.error.brief
        return "; ".join(str(gate) for gate in self.gates if gate.refuses)

    @property
    def facts(self) -> TrialFacts:
        """The trial as the manifest keeps it."""
        return TrialFacts(
            number=self.number,
            purpose=self.purpose,
            precision=self.precision,
            status=self.status,
            why=self.why,
            pruned=round(self.pruned, 4),
            kept_float=self.kept_float,
            options=options_to_dict(self.variant.options) if self.variant else None,
            warnings=self.warnings,
            note=self.note,
            accuracy=self.accuracy,
            saliency=replace(self.saliency, shown=()) if self.saliency else None,
            footprint=self.footprint,
            speed=self.speed,
            gates=self.gates,
            certified=self.certified,
            target=self.target,
            stages=tuple(StageDigest(entry.stage, entry.digest) for entry in self.made.entries) if self.made else (),
        )


def run_trial(
    context: BuildContext,
    rule: PrecisionRule,
    *,
    number: int,
    original: Trial | None,
    is_only: bool,
    variant: Variant | None = None,
    purpose: Purpose | None = None,
    builds: int = 0,
) -> Trial:
    """Makes, measures and judges one candidate.

    Args:
        context: The device.
        rule: The candidate's precision.
        number: Its place in the search.
        original: The float original's trial; None where this is it, or where the target has none.
        is_only: Whether the build stands and falls with it: then it raises what goes wrong, and parity is explained.
        variant: How it is quantized; the quantizer's defaults where None.
        purpose: Why it is tried, where it is more than a candidate.
        builds: Builds of it before this one, which were too slow.

    Raises:
        CompilerError: It is the only one and cannot be made; or the cache's disk is full.
    """
    # the baseline may be a candidate too: then it is one, and is judged
    purpose = purpose or (Purpose.CANDIDATE if rule in context.job.plan.candidates else Purpose.BASELINE)
    how = (variant or Variant()) if rule.scheme else None
    again = partial(run_trial, context, rule, number=number, original=original, is_only=is_only, purpose=purpose)
    plan = settle(context.job.plan, rule, "tried by the search" if not is_only else context.job.plan.reason)
    target = plan.competes_as
    context.clock.emit(TrialStarted(context.name, number, rule.name, purpose, pruned=plan.pruning.ratio, target=target))
    try:
        remake = partial(build, context, plan, how or Variant())
        # what takes too much memory is built anew before it is verified, which takes longer than to weigh it
        fitting = fit_memory(context, remake(), _footprint(original), remake=remake)
        made = verify(context, fitting, explain=is_only)
        trial = measure_candidate(context, made, original=original, number=number, purpose=purpose)
        if (
            how is not None
            and (time := shorter_time(trial.gates, read_time(made.border.entries), builds=builds)) is not None
        ):
            context.clock.note(f"{trial.label}: too slow, weights get faster formats: {time:.3g} of the least time")
            return again(variant=replace(how, time=time), builds=builds + 1)
        context.clock.emit(judged_event(context, trial))
        trial = replace(trial, variant=how, **read_notes(context, rule, made.border))
        for warning in trial.warnings if purpose == Purpose.CANDIDATE else ():
            context.clock.note(f"{trial.label}: {warning}", Level.WARNING)
        return trial
    except CompilerError as error:
        # a full disk would fail every other candidate too, and look like a fault of theirs
        if is_only or isinstance(error, StorageError):
            raise
        trial = Trial(number, purpose, rule.name, error=error, variant=how, pruned=plan.pruning.ratio, target=target)
        context.clock.emit(judged_event(context, trial))
        return trial


def judged_event(context: BuildContext, trial: Trial) -> TrialJudged:
    """What is told of a trial that is over."""
    return TrialJudged(
        context.name, trial.number, trial.precision, trial.purpose, trial.status, trial.why, target=trial.target
    )


def read_notes(context: BuildContext, rule: PrecisionRule, border: Border) -> dict[str, Any]:
    """`pruned` and `warnings` of a trial, as its border model's stages noted them."""
    pruned = read_pruning(border.entries)
    warnings = (*quantizer_warnings(context, rule, border.entries), *(pruned["warnings"] if pruned else ()))
    return {"pruned": pruned["ratio"] if pruned else 0.0, "warnings": warnings}


def measure_candidate(
    context: BuildContext, made: BuiltCandidate, *, original: Trial | None, number: int, purpose: Purpose
) -> Trial:
    """Measures what was made, and judges the figures by the device's gates."""
    constraints = context.job.plan.constraints
    if not constraints.any:
        return Trial(number, purpose, made.plan.precision, made, target=made.plan.competes_as)
    # a language model's original is held to its reference by parity, and a text takes as long as a candidate's
    is_read = purpose != Purpose.BASELINE or context.job.device.generation is None
    judge = context.data.judge if is_read else None
    with context.clock.timed(StageName.ACCURACY):
        accuracy = measure_accuracy(context, judge, made) if judge else None
    saliency = measure_saliency(context, made) if _limits_saliency(constraints, purpose) else None
    with context.clock.timed(StageName.SPEED):
        speed = measure_speed(context, made, original.made if original else None)
        latency = latency_figure(context, made, speed)
    with context.clock.timed(StageName.MEMORY):
        footprint = measure_footprint(context, made, None if made.plan.is_baseline else _footprint(original))
        figures = _memory(context, footprint, made, original) | {GateName.LATENCY: latency}
        figures[GateName.MEMORY_PEAK] = process_figure(footprint)
    if accuracy:
        figures[GateName.ACCURACY] = accuracy_figure(accuracy)
    elif context.data.unjudged:
        figures[GateName.ACCURACY] = Figure(None, Evidence.NONE, why=context.data.unjudged)
    is_judged = purpose != Purpose.BASELINE
    if saliency:
        figures[GateName.SALIENCY] = saliency_figure(saliency)
    return Trial(
        number,
        purpose,
        made.plan.precision,
        made,
        gates=judge_gates(constraints.limits, figures, unjudged=constraints.unjudged) if is_judged else (),
        footprint=footprint,
        speed=speed,
        accuracy=accuracy,
        saliency=saliency,
        target=made.plan.competes_as,
    )


def _limits_saliency(constraints: Constraints, purpose: Purpose) -> bool:
    """Whether a trial is judged by its maps; a baseline is judged by nothing."""
    return constraints.limits.saliency_correlation_min is not None and purpose != Purpose.BASELINE


def _memory(
    context: BuildContext, footprint: Footprint, made: BuiltCandidate, original: Trial | None
) -> dict[GateName, Figure]:
    if context.is_quantized:
        none = Figure(None, Evidence.NONE, why=QUANTIZED)
        return {GateName.MEMORY_WEIGHTS: none, GateName.MEMORY_RUN: none}
    # the baseline saves nothing against itself: figures of 0, not of "no original"
    first = footprint if made.plan.is_baseline else _footprint(original)
    return compare_footprints(reference_footprint(made, first), footprint)


def _footprint(trial: Trial | None) -> Footprint | None:
    return trial.footprint if trial is not None else None


def is_missing(trial: Trial) -> bool:
    """Whether it failed for something that this machine lacks, as every other trial will."""
    return isinstance(trial.error, MissingError)


def float_original(trials: Sequence[Trial]) -> Trial | None:
    """The float original that the others are measured against; None if there is none."""
    return next((trial for trial in trials if trial.made is not None and trial.made.plan.is_baseline), None)
