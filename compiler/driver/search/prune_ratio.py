"""The search for how much to prune: of the precision that was found, the most that holds the accuracy limit, and only
if this device gets faster by it.

    base      the fastest trial that holds the accuracy limit, whatever else it fails at
    ladder    accuracy alone, on the border model, or on the artifact where it runs here
    build     the highest ratio that held, judged by all gates; the next lower one where the artifact loses more
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.artifact.schema import GateName, Purpose
from compiler.compress.prune import Unprunable
from compiler.driver.search.follow_ups import FollowUps
from compiler.driver.search.ladder import Climb, LadderEnd, Rung, climb
from compiler.driver.search.select import choose_trial, fastest, pays
from compiler.driver.search.trial import Trial
from compiler.driver.stages.context import BuildContext, with_plan
from compiler.plan import settle_pruning

BUILDS = 3
"""How many of the ratios that held are built where the artifact loses more than its border model did."""

_ENDS = {
    LadderEnd.LIMIT: "more would break the accuracy limit",
    LadderEnd.CHANNELS: "no more can be cut",
    LadderEnd.LADDER: "no more was tried",
    LadderEnd.BUDGET: "the search's budget was spent",
}


@dataclass(frozen=True)
class PruneRatio:
    """What the search for a ratio came to.

    Args:
        trials: Its trials, in order.
        reason: Why so much is pruned, or nothing, in words for the plan.
    """

    trials: tuple[Trial, ...]
    reason: str


def search_ratio(context: BuildContext, trials: Sequence[Trial], original: Trial | None) -> PruneRatio:
    """Prunes what the search for a precision found.

    Args:
        context: The device.
        trials: Those of the search for a precision.
        original: The float original's.
    """
    base, judge = _base(trials), context.data.judge
    limit = context.job.plan.constraints.limits.accuracy_drop_pct
    if context.is_quantized:
        return PruneRatio((), "the model is quantized already: float models are pruned, and quantized afterwards")
    if base is None or base.made is None or judge is None or limit is None:
        return PruneRatio((), "no precision holds the accuracy limit without it, and pruning only loses more")
    context = context.through(base.made.plan)
    follow_ups = FollowUps(context, base.made, judge, limit, len(trials), [])

    def measure(ratio: float) -> Rung:
        trial = follow_ups.measure(_at(context, ratio), base.variant, Purpose.PRUNING)
        drop = trial.accuracy.drop if trial.accuracy else None
        return Rung(ratio, trial.pruned, drop.judged_pct if drop else math.inf)  # what nobody measured holds nothing

    try:
        ladder = climb(measure, limit=limit, budget=follow_ups.budget)
    except Unprunable as error:
        return PruneRatio(tuple(follow_ups.trials), error.what)
    if not ladder.held:
        return PruneRatio(tuple(follow_ups.trials), _nothing_held(follow_ups.trials))
    for rung in reversed(ladder.held[-BUILDS:]):
        trial = follow_ups.build(_at(context, rung.asked), base.variant, Purpose.PRUNING, original=original)
        if trial.passed or not _lost_more(trial):
            break
    return PruneRatio(tuple(follow_ups.trials), _reason(trial, base, ladder, [*trials, *follow_ups.trials]))


def _at(context: BuildContext, ratio: float) -> BuildContext:
    """The device with this much pruned."""
    plan = context.job.plan
    return with_plan(context, settle_pruning(plan, replace(plan.pruning, ratio=ratio)))


def _base(trials: Sequence[Trial]) -> Trial | None:
    """What is delivered without pruning; else the fastest of those that only fail at other things than accuracy."""
    holding = [trial for trial in trials if trial.made and not trial.error and not _lost_more(trial) and trial.gates]
    return choose_trial(trials) or (fastest(holding) if holding else None)


def _lost_more(trial: Trial) -> bool:
    return any(gate.name == GateName.ACCURACY and gate.passed is False for gate in trial.gates)


def _nothing_held(trials: Sequence[Trial]) -> str:
    if not trials:
        return "the search's budget was spent before anything was pruned"
    least = min(trials, key=lambda trial: trial.pruned)
    if least.error:
        return f"at {least.pruned:.0%} pruned it cannot be made: {least.why}"
    return f"already {least.pruned:.0%} pruned breaks the accuracy limit: {least.why}"


def _reason(trial: Trial, base: Trial, ladder: Climb, trials: Sequence[Trial]) -> str:
    """Why the model is delivered pruned by so much, or unpruned."""
    where = f"at {trial.pruned:.0%} pruned"
    if not trial.passed:
        return f"{where} it is not delivered: {trial.why}"
    speedup, unpruned = (either.speed.speedup if either.speed else None for either in (trial, base))
    if speedup is None or unpruned is None:
        return f"nothing measures or models what pruning gains on this device; {where} {_points(trial)}"
    gain = f"{speedup / unpruned:.2f} × the speed of {base.label} unpruned ({trial.speed and trial.speed.evidence})"
    if not pays(trial, trials):
        return f"no gain to measure: {where} it is {gain} for {_points(trial)}"
    return f"auto: {where} it is {gain} for {_points(trial)}; {_ENDS[ladder.why]}"


def _points(trial: Trial) -> str:
    drop = trial.accuracy.drop if trial.accuracy else None
    return f"{drop.drop_pct:.2f} points of {drop.metric}" if drop else "an accuracy that nobody could measure"
