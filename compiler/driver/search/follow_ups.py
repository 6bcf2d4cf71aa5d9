"""The trials that follow from one: other forms of it, measured by accuracy alone or made and judged by all gates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from compiler.artifact import Evidence
from compiler.artifact.schema import Purpose
from compiler.compress.quant import QuantOptions
from compiler.driver.events import TrialStarted
from compiler.driver.search.accuracy_trial import try_accuracy
from compiler.driver.search.trial import Trial, judged_event, run_trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.quantize import Variant
from compiler.target.capability import PrecisionRule


@dataclass
class FollowUps:
    """What follows from a trial.

    Args:
        context: The device.
        start: What was made in that trial.
        judge: What accuracy is judged by.
        limit: Most points it may lose.
        before: Trials of the search that are not among these.
        trials: In order; that one may be the first.
    """

    context: BuildContext
    start: BuiltCandidate
    judge: AccuracyTest
    limit: float
    before: int
    trials: list[Trial]

    @property
    def rule(self) -> PrecisionRule:
        """The precision of all trials."""
        return self.start.plan.rule

    @property
    def number(self) -> int:
        """Of the next trial."""
        return self.before + len(self.trials) + 1

    @property
    def budget(self) -> int:
        """Trials that may still be made, with one kept for the build of what was found."""
        return self.context.options.search_budget - self.number

    def note(self, text: str) -> None:
        """Says, with the last trial, why the search goes no further there."""
        self.context.clock.note(f"{self.trials[-1].label}: {text}")
        self.trials[-1] = replace(self.trials[-1], note=text)

    def measure(self, context: BuildContext, variant: Variant | None, purpose: Purpose) -> Trial:
        """The judged drop of a form, and no more of it.

        The artifact is asked where it runs on this machine, and the border model elsewhere.

        Args:
            context: The device, with the plan that the form is made by.
            variant: How it is quantized; None for a precision of floating point.
            purpose: Why it is tried.
        """
        context.clock.emit(
            TrialStarted(
                context.name,
                self.number,
                self.rule.name,
                purpose,
                has_options=bool(variant and variant.options != QuantOptions()),
                kept_float=len(variant.kept) if variant else 0,
                pruned=context.job.plan.pruning.ratio,
                target=context.job.plan.competes_as,
            )
        )
        trial = try_accuracy(
            context,
            self.rule,
            self.judge,
            number=self.number,
            purpose=purpose,
            limit=self.limit,
            variant=variant,
            on_artifact=self.start.verdict.evidence == Evidence.HOST,
        )
        context.clock.emit(judged_event(context, trial))
        self.trials.append(trial)
        return trial

    def build(
        self, context: BuildContext, variant: Variant | None, purpose: Purpose, *, original: Trial | None
    ) -> Trial:
        """A form made and judged by all gates."""
        trial = run_trial(
            context,
            self.rule,
            number=self.number,
            original=original,
            is_only=False,
            variant=variant,
            purpose=purpose,
        )
        self.trials.append(trial)
        return trial


def judged_drop(trial: Trial) -> float:
    """Points lost as they are judged: infinite where it could not be made, none where nobody could measure them."""
    if trial.error is not None:
        return math.inf
    return trial.accuracy.drop.judged_pct if trial.accuracy and trial.accuracy.drop else 0.0
