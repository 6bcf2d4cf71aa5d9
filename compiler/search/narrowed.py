"""The search for how much to prune: of the precision that was found, the most that holds the accuracy limit, and only
if this device gets faster by it.

    base      the fastest trial that holds the accuracy limit, whatever else it fails at
    ladder    accuracy alone, on the border model, or on the artifact where it runs here
    build     the highest ratio that held, judged by all gates; the next lower one where the artifact loses more
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from compiler.artifact import Evidence
from compiler.judge import Judge
from compiler.plan import settle_pruning
from compiler.prune import Unprunable
from compiler.search.accuracy_trial import try_accuracy
from compiler.search.bench import Bench, with_plan
from compiler.search.ladder import Climb, Rung, climb
from compiler.search.made import Made
from compiler.search.select import choose_trial, fastest, pays
from compiler.search.trial import Trial, run_trial

log = logging.getLogger("fleetc.build")

BUILDS = 3
"""How many of the ratios that held are built where the artifact loses more than its border model did."""

_ENDS = {
    "limit": "more would break the accuracy limit",
    "channels": "no more can be cut",
    "ladder": "no more was tried",
    "budget": "the search's budget was spent",
}


@dataclass(frozen=True)
class Narrowed:
    """What the search for a ratio came to.

    Args:
        trials: Its trials, in order.
        reason: What it found, in words for the plan.
    """

    trials: tuple[Trial, ...]
    reason: str


@dataclass
class _Trail:
    """The trials so far.

    Args:
        bench: The device.
        base: The unpruned trial that is narrowed.
        made: What was made in it.
        judge: What accuracy is judged by.
        limit: Most points it may lose.
        first: Number of the next trial.
        trials: In order.
    """

    bench: Bench
    base: Trial
    made: Made
    judge: Judge
    limit: float
    first: int
    trials: list[Trial] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Of the next trial."""
        return self.first + len(self.trials)

    def at(self, ratio: float) -> Bench:
        """The device with this much pruned."""
        plan = self.bench.job.plan
        return with_plan(self.bench, settle_pruning(plan, replace(plan.pruning, ratio=ratio)))

    def measure(self, ratio: float) -> Rung:
        """The judged drop at a ratio, and no more of it."""
        log.info("%s: trial %d: %s, %.0f%% pruned", self.bench.name, self.number, self.base.precision, 100 * ratio)
        trial = try_accuracy(
            self.at(ratio),
            self.made.plan.rule,
            self.judge,
            number=self.number,
            purpose="pruning",
            limit=self.limit,
            variant=self.base.variant,
            on_artifact=self.made.verdict.evidence == Evidence.HOST,
        )
        self.trials.append(trial)
        found = trial.accuracy.drop if trial.accuracy else None
        return Rung(ratio, trial.pruned, found.judged_pct if found else math.inf)

    def build(self, ratio: float, original: Trial | None) -> Trial:
        """A ratio made and judged by all gates."""
        trial = run_trial(
            self.at(ratio),
            self.made.plan.rule,
            number=self.number,
            original=original,
            is_only=False,
            variant=self.base.variant,
            purpose="pruning",
        )
        self.trials.append(trial)
        return trial


def search_ratio(bench: Bench, trials: Sequence[Trial], original: Trial | None) -> Narrowed:
    """Prunes what the search for a precision found.

    Args:
        bench: The device.
        trials: Those of the search for a precision.
        original: The float original's.
    """
    base, judge = _base(trials), bench.data.judge
    limit = bench.job.plan.demands.limits.accuracy_drop_pct
    if bench.is_quantized:
        return Narrowed((), "the model is quantized already: float models are pruned, and quantized afterwards")
    if base is None or base.made is None or judge is None or limit is None:
        return Narrowed((), "no precision holds the accuracy limit without it, and pruning only loses more")
    trail = _Trail(bench, base, base.made, judge, limit, len(trials) + 1)
    try:
        found = climb(trail.measure, limit=limit, budget=bench.options.search_budget - len(trials) - 1)
    except Unprunable as error:
        return Narrowed(tuple(trail.trials), error.what)
    if not found.held:
        return Narrowed(tuple(trail.trials), _nothing_held(trail, found))
    for rung in reversed(found.held[-BUILDS:]):
        trial = trail.build(rung.asked, original)
        if trial.passed or not _lost_more(trial):
            break
    return Narrowed(tuple(trail.trials), _told(trail, trial, found, [*trials, *trail.trials]))


def _base(trials: Sequence[Trial]) -> Trial | None:
    """What is delivered without pruning; else the fastest of those that only fail at other things than accuracy."""
    holding = [trial for trial in trials if trial.made and not trial.error and not _lost_more(trial) and trial.gates]
    return choose_trial(trials) or (fastest(holding) if holding else None)


def _lost_more(trial: Trial) -> bool:
    return any(gate.name == "accuracy" and gate.passed is False for gate in trial.gates)


def _nothing_held(trail: _Trail, found: Climb) -> str:
    if not trail.trials:
        return "the search's budget was spent before anything was pruned"
    least = min(trail.trials, key=lambda trial: trial.pruned)
    if least.error:
        return f"at {least.pruned:.0%} pruned it cannot be made: {least.why}"
    return f"already {least.pruned:.0%} pruned breaks the accuracy limit: {least.why}"


def _told(trail: _Trail, trial: Trial, found: Climb, trials: Sequence[Trial]) -> str:
    """Why the model is delivered pruned by so much, or unpruned."""
    where = f"at {trial.pruned:.0%} pruned"
    if not trial.passed:
        return f"{where} it is not delivered: {trial.why}"
    mine, other = (one.speed.speedup if one.speed else None for one in (trial, trail.base))
    if mine is None or other is None:
        return f"nothing measures or models what pruning gains on this device; {where} {_points(trial)}"
    gain = f"{mine / other:.2f} × the speed of {trail.base.precision} unpruned ({trial.speed and trial.speed.evidence})"
    if not pays(trial, trials):
        return f"no gain to measure: {where} it is {gain} for {_points(trial)}"
    return f"auto: {where} it is {gain} for {_points(trial)}; {_ENDS[found.why]}"


def _points(trial: Trial) -> str:
    drop = trial.accuracy.drop if trial.accuracy else None
    return f"{drop.drop_pct:.2f} points of {drop.metric}" if drop else "an accuracy that nobody could measure"
