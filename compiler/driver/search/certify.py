"""The last word on the accuracy of what was chosen, on data that did not choose it; what fails it is not delivered.

choose → certify → passed: deliver
  ↑         └ failed: refused, and the next best is certified, by a wider interval
  └────────────┘
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.artifact import Evidence
from compiler.artifact.schema import AccuracyDrop, Certified, FinalRace, TextScore
from compiler.driver.measure.accuracy import measure_accuracy
from compiler.driver.search.final_race import choose_raced
from compiler.driver.search.select import preference
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.evaluate import Split, SplitKind
from compiler.evaluate.certify import Contender, certify_held_out, cross_fit
from compiler.evaluate.gates import Figure, Gate, GateName, judge_gates
from compiler.evaluate.task import MeasuredDrop
from compiler.fleet import Limits
from compiler.fleet.data import GENERATION
from compiler.store import StageName

log = logging.getLogger("fleetc.build")


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Args:
        trials: All, those that were chosen with their certified accuracy.
        chosen: The one to deliver; None if none passes.
        races: The last races, which settled it.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None
    races: tuple[FinalRace, ...] = ()


def choose_certified(context: BuildContext, trials: Sequence[Trial]) -> Choice:
    """The trial to deliver: the best of those that pass on data that did not choose them, too."""
    known, rank = [*trials], sum(trial.certified is not None for trial in trials)
    limit = context.job.plan.constraints.limits.accuracy_drop_pct
    while True:
        chosen, races = choose_raced(context, known)
        if chosen is None or chosen.certified is not None:  # it passed when it was certified
            return Choice(tuple(known), chosen, races)
        rank += 1
        with context.clock.timed(StageName.ACCURACY):
            certified = _certify(context, chosen, known, rank)
        if certified is None:
            return Choice(tuple(known), chosen, races)
        judged = with_certified(chosen, certified, limit)
        known[known.index(chosen)] = judged
        if judged.passed:
            return Choice(tuple(known), judged, races)
        log.info("%s: %s: %s", context.name, judged.label, judged.why)


def certify_others(context: BuildContext, passed: Sequence[Trial], trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials that passed while choosing, judged again on the half of the data that was held out, where there is one.

    Each is one look more at that half, and so judged by a wider interval than the one before.

    Args:
        context: The device.
        passed: The trials to certify, in order.
        trials: All of the search.
    """
    judge = context.data.judge
    if judge is None or judge.split is None or judge.split.kind != SplitKind.HELD_OUT:
        return tuple(passed)
    rank = sum(trial.certified is not None for trial in trials)
    limit = context.job.plan.constraints.limits.accuracy_drop_pct
    found = []
    for trial in passed:
        rank += trial.certified is None
        certified = None if trial.certified else _certify(context, trial, trials, rank)
        found.append(with_certified(trial, certified, limit) if certified else trial)
    return tuple(found)


def _certify(context: BuildContext, chosen: Trial, trials: Sequence[Trial], rank: int) -> Certified | None:
    """None where nothing limits accuracy, nobody could measure it, or the data cannot be divided."""
    judge, limit = context.data.judge, context.job.plan.constraints.limits.accuracy_drop_pct
    if judge is None or judge.split is None or limit is None or not (chosen.accuracy and chosen.accuracy.drop):
        return None
    if judge.split.kind == SplitKind.HELD_OUT:
        return _held_out(context, judge, judge.split, chosen, limit, rank, _looks(trials))
    if judge.split.kind == SplitKind.CROSS_FIT:
        return _cross_fit(judge, judge.split, chosen, trials, limit, rank)
    return None


def _held_out(
    context: BuildContext, judge: AccuracyTest, split: Split, chosen: Trial, limit: float, rank: int, looks: int
) -> Certified | None:
    if chosen.made is None:
        return None
    drop = measure_accuracy(context.through(chosen.made.plan), judge.certifying, chosen.made).drop
    if drop is None:
        return None
    certified = certify_held_out(drop, split, asked=judge.task.rule, limit_pct=limit, rank=rank, looks=looks)
    return replace(certified, texts=_texts(context, judge, chosen.made, certified, drop, limit))


def _texts(
    context: BuildContext,
    judge: AccuracyTest,
    made: BuiltCandidate,
    certified: Certified,
    drop: AccuracyDrop,
    limit: float,
) -> tuple[TextScore, ...]:
    """A language model's figures on each text that chose nothing; none of other models."""
    if judge.task.name != GENERATION:
        return ()
    origin = f"{judge.dataset.origin}, the half held out"
    texts = [TextScore(origin, judge.dataset.digest, drop, certified.judged_pct <= limit)]
    other = context.data.other
    elsewhere = measure_accuracy(context, other, made).drop if other is not None else None
    if other is not None and elsewhere is not None:
        texts.append(TextScore(other.dataset.origin, other.dataset.digest, elsewhere, elsewhere.judged_pct <= limit))
    return tuple(texts)


def _cross_fit(
    judge: AccuracyTest, split: Split, chosen: Trial, trials: Sequence[Trial], limit: float, rank: int
) -> Certified | None:
    scored = [trial for trial in alternatives(chosen, trials) if _contender(trial) is not None]
    contenders = [contender for trial in scored if (contender := _contender(trial)) is not None]
    if chosen not in scored:
        return None
    return cross_fit(
        contenders,
        scored.index(chosen),
        split,
        metric=judge.task.metric,
        asked=judge.task.rule,
        limit_pct=limit,
        rank=rank,
    )


def alternatives(chosen: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that luck could have put in the place of the chosen one, itself included, the preferred one first.

    They are the other forms of its precision. What other precisions lose is no figure of this build: that they were
    refused flatters it no more than a look at it alone would.
    """
    return [trial for trial in preference(trials) if trial.label == chosen.label]


def _contender(trial: Trial) -> Contender | None:
    """A trial as one that could have been chosen; None where it was not scored, or its certification failed."""
    drop = trial.accuracy.drop if trial.accuracy else None
    if not isinstance(drop, MeasuredDrop) or drop.measured is None or trial.certified is not None:
        return None
    return Contender(*drop.measured)


def _looks(trials: Sequence[Trial]) -> int:
    return sum(trial.accuracy is not None and trial.accuracy.drop is not None for trial in trials)


def with_certified(chosen: Trial, certified: Certified, limit_pct: float | None) -> Trial:
    """The trial with its accuracy gate judged again: on the certified drop, or on a text that loses more."""
    evidence = chosen.accuracy.evidence if chosen.accuracy else Evidence.NONE
    measured_on = chosen.accuracy.measured_on if chosen.accuracy else ""
    why = f"certified, {certified.how}: {certified.why}; measured on the {measured_on}"
    figure = Figure(certified.judged_pct, evidence, certified.rule, why)
    others = [text for text in certified.texts[1:] if text.drop.judged_pct > certified.judged_pct]
    if others:  # the limit holds for every text
        worst = max(others, key=lambda text: text.drop.judged_pct)
        why = f"on {worst.origin}: {worst.drop.why}; measured on the {measured_on}"
        figure = Figure(worst.drop.judged_pct, evidence, worst.drop.rule, why)
    (gate,) = judge_gates(Limits(accuracy_drop_pct=limit_pct), {GateName.ACCURACY: figure})
    return replace(chosen, certified=certified, gates=tuple(_replaced(old, gate) for old in chosen.gates))


def _replaced(old: Gate, gate: Gate) -> Gate:
    return gate if old.name == gate.name else old
