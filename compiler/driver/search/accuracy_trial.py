"""A trial of accuracy alone: what a search asks on its way, before anything is measured that takes longer."""

from __future__ import annotations

from dataclasses import replace

from compiler.artifact import Evidence
from compiler.artifact.schema import Accuracy, GateName, MeasuredOn, Purpose
from compiler.compress.prune import Unprunable
from compiler.driver.measure.accuracy import accuracy_figure, border_drop, measure_accuracy
from compiler.driver.search.trial import Trial, read_notes
from compiler.driver.stages.border import Border
from compiler.driver.stages.candidate import make, make_candidate_border
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.quantize import Variant
from compiler.errors import CompilerError, StorageError
from compiler.evaluate.gates import judge_gates
from compiler.fleet import Limits
from compiler.plan import settle
from compiler.store import StageName
from compiler.target.capability import PrecisionRule


def try_accuracy(
    context: BuildContext,
    rule: PrecisionRule,
    judge: AccuracyTest,
    *,
    number: int,
    purpose: Purpose,
    limit: float,
    variant: Variant | None,
    on_artifact: bool,
) -> Trial:
    """Makes a candidate as far as its accuracy needs it, and judges that.

    Args:
        context: The device.
        rule: The candidate's precision.
        judge: What accuracy is judged by.
        number: Its place in the search.
        purpose: Why it is tried.
        limit: Most points it may lose.
        variant: How it is quantized; None for a precision of floating point.
        on_artifact: Whether the artifact is asked, which runs on this machine; else the border model.

    Raises:
        Unprunable: Nothing of the model can be cut.
        StorageError: The cache's disk is full.
    """
    plan = context.job.plan
    trial = Trial(number, purpose, rule.name, variant=variant, pruned=plan.pruning.ratio, target=plan.competes_as)
    try:
        border, accuracy = _measured(context, rule, judge, variant or Variant(), on_artifact=on_artifact)
        notes = read_notes(context, rule, border)
    except (StorageError, Unprunable):
        raise
    except CompilerError as error:
        return replace(trial, error=error)
    figures, unjudged = {GateName.ACCURACY: accuracy_figure(accuracy)}, plan.constraints.unjudged
    gates = judge_gates(Limits(accuracy_drop_pct=limit), figures, unjudged=unjudged)
    return replace(trial, gates=gates, accuracy=accuracy, **notes)


def _measured(
    context: BuildContext, rule: PrecisionRule, judge: AccuracyTest, variant: Variant, *, on_artifact: bool
) -> tuple[Border, Accuracy]:
    plan = settle(context.job.plan, rule, "tried by the search")
    if on_artifact:
        made = make(context, plan, variant, explain=False)
        with context.clock.timed(StageName.ACCURACY):
            return made.border, measure_accuracy(context, judge, made)
    border = make_candidate_border(context, plan, variant)
    with context.clock.timed(StageName.ACCURACY):
        drop = border_drop(context, judge, plan, border)
    return border, Accuracy(drop, MeasuredOn.BORDER_MODEL, Evidence.HOST, "nothing was built for it")
