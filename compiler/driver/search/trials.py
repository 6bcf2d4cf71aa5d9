"""The trials of a device's candidates: the baseline, every candidate in its first form, then other forms of some.

Of several targets the first builds are raced, and candidates that cannot win are left out; what was left out is made
after all where nothing else passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from compiler.artifact.schema import Decision, Purpose, Standing
from compiler.driver.search.contest import Entrant, enter_targets, sort_out
from compiler.driver.search.expected import order_candidates, skip_trial, why_left_out
from compiler.driver.search.follow_ups import judged_drop
from compiler.driver.search.mixed import search_mixed
from compiler.driver.search.select import beaten_by, choose_trial, describe
from compiler.driver.search.trial import Trial, float_original, is_missing, run_trial
from compiler.driver.stages.context import BuildContext, with_plan
from compiler.driver.stages.kernels import MIB
from compiler.errors import combine
from compiler.fleet import Kept
from compiler.passes.instrument import measure
from compiler.plan import SearchEffort, settle_pruning
from compiler.plan.contest import CLOSE
from compiler.plan.pruning import UNPRUNED
from compiler.target.capability import PrecisionRule

BEYOND = 2.0
"""A float32 build is not made to compare with where its weights alone are so many times the limit on memory."""


def leave_out_baseline(context: BuildContext) -> BuildContext:
    """The device without the float32 build that others are compared with, where that is far beyond its memory.

    Nothing like it runs on the device, and this machine would have to hold it: ONNX Runtime, say, keeps weights twice.
    """
    plan = context.job.plan
    limit_mib, rule = plan.constraints.limits.memory_mib, plan.baseline
    if limit_mib is None or rule is None or rule in plan.candidates or context.job.others:
        return context
    weights_mib = measure(context.ready.model).bytes / MIB
    if weights_mib <= BEYOND * limit_mib:
        return context
    why = f"its weights take {weights_mib:.0f} MiB, and memory_mib is {limit_mib:g}: nothing is compared with it"
    context.clock.note(f"{rule.name} is not made: {why}")
    decisions = {**plan.decisions, "baseline": Decision("not made", why)}
    return with_plan(context, replace(plan, baseline=None, decisions=decisions))


def run_trials(context: BuildContext) -> tuple[tuple[Entrant, ...], tuple[Trial, ...]]:
    """The baseline, every candidate as it is made by default, then other forms of those that lose too much.

    Of several targets the first builds are raced, and candidates are tried of those that may win.
    """
    if context.is_quantized and len(context.job.plan.candidates) > 1:
        context.clock.note("the model is already quantized: it is verified and passed on")
    entrants, first = _enter(context)
    trials, original = [*first], float_original(first)
    is_only = not context.job.others and len(_candidates(context)) == 1
    candidates = [(entrant, rule) for entrant in entrants if entrant.is_possible for rule in _others(entrant, first)]
    may_skip = _may_skip(context)
    for entrant, rule in _ordered(candidates, original) if may_skip else candidates:
        number, own = len(trials) + 1, entrant.context
        why, is_last = "", entrant.standing is not None and context.options.search == SearchEffort.QUICK
        if is_last and entrant.standing == Standing.NOT_RACED:
            why = entrant.why
        elif is_last or may_skip:
            why = why_not_made(entrant, rule, trials)
        if why:
            trials.append(skip_trial(own, rule, number=number, why=why))
            continue
        _tell(own, rule, trials)
        trials.append(run_trial(own, rule, number=number, original=original, is_only=is_only))
    if is_only or context.is_quantized:
        return entrants, tuple(trials)
    return entrants, _with_others(context, trials, original)


def _enter(context: BuildContext) -> tuple[tuple[Entrant, ...], tuple[Trial, ...]]:
    """The targets, those sorted out that a race of float32 builds shows to be slower; and the trials of the baseline.

    Raises:
        CompilerError: This machine lacks what every target needs.
    """
    is_only = not context.job.others and _candidates(context) == (context.job.plan.baseline,)
    baseline = partial(_run_baseline, is_only=is_only)
    entrants, trials = enter_targets(context, lambda plan: plan.baseline, baseline)
    # what the baseline lacks, all others lack too: no use in failing each of them
    missing = [trial.error for trial in trials if is_missing(trial) and trial.error]
    if missing and len(missing) == len(entrants):
        raise combine(missing)
    if float_original(trials) is None:  # candidates may do what the baseline could not
        lacking = {trial.target for trial in trials if is_missing(trial)}
        return tuple(entrant if entrant.name in lacking else Entrant(entrant.context) for entrant in entrants), trials
    return sort_out(entrants, _expected_gain), trials


def _expected_gain(context: BuildContext) -> float:
    return max((rule.gain for rule in _candidates(context)), default=1.0)


def _others(entrant: Entrant, first: Sequence[Trial]) -> list[PrecisionRule]:
    """The candidates of a target but its baseline, where that was tried and is not to be pruned."""
    plan = entrant.context.job.plan
    is_tried = any(trial.target == entrant.name for trial in first) and not plan.pruning.ratio
    return [rule for rule in _candidates(entrant.context) if not (is_tried and rule == plan.baseline)]


def _may_skip(context: BuildContext) -> bool:
    """Whether candidates may be left out that cannot be faster than what passes."""
    serves = context.job.device.serve
    keeps_ladder = serves is not None and serves.ladder == Kept.AUTO  # then slower builds are wanted, too
    return context.options.search == SearchEffort.QUICK and not context.job.plan.pruning.ratio and not keeps_ladder


def _ordered(
    candidates: Sequence[tuple[Entrant, PrecisionRule]], original: Trial | None
) -> list[tuple[Entrant, PrecisionRule]]:
    """The candidates, the most promising first; those of targets that were sorted out last."""
    entrants = list(dict.fromkeys(entrant for entrant, _ in candidates))
    ordered = [
        (entrant, rule)
        for entrant in entrants
        for rule in order_candidates(entrant.context, [rule for own, rule in candidates if own is entrant], original)
    ]
    if len(entrants) == 1:
        return ordered
    return sorted(ordered, key=lambda pair: (pair[0].standing is not None, -pair[0].speedup * pair[1].gain))


def _with_others(context: BuildContext, trials: Sequence[Trial], original: Trial | None) -> tuple[Trial, ...]:
    """The trials, and other forms of quantized candidates that lose too much, where those could still be chosen."""
    judge, limit = context.data.judge, context.job.plan.constraints.limits.accuracy_drop_pct
    extended = [*trials]
    if judge is None or limit is None:
        return tuple(extended)
    for place, first in enumerate(trials):
        scheme = first.made.plan.rule.scheme if first.made is not None else None
        # formats of weights were chosen as well as the bytes allow: there is no other form
        if scheme is None or scheme.weights is not None or judged_drop(first) <= limit:
            continue
        if (better := beaten_by(first, extended)) is not None:
            note = f"no other form is tried: {better.label} passes, and is faster, or measured where this is not"
            context.clock.note(f"{first.label}: {note}")
            extended[place] = replace(first, note=note)
            continue
        own, number = context.through(first.made.plan) if first.made else context, len(extended) + 1
        first, *others = search_mixed(own, judge, limit, first=first, number=number, original=original)
        extended[place] = first
        extended += others
    return tuple(extended)


def _run_baseline(context: BuildContext, rule: PrecisionRule, number: int, *, is_only: bool) -> Trial:
    """The float original, which is a candidate too unless what is delivered must be pruned."""
    plan = context.job.plan
    if not plan.pruning.ratio:
        return run_trial(context, rule, number=number, original=None, is_only=is_only)
    whole = with_plan(context, settle_pruning(plan, UNPRUNED))
    return run_trial(whole, rule, number=number, original=None, is_only=False, purpose=Purpose.BASELINE)


def _tell(context: BuildContext, rule: PrecisionRule, trials: Sequence[Trial]) -> None:
    best = choose_trial(trials)
    words = f"{best.label}, {describe(best)}" if best else "none"
    name = f"{context.job.plan.competes_as} {rule.name}".strip()
    context.clock.note(f"next {name}; best so far: {words}")


def _candidates(context: BuildContext) -> tuple[PrecisionRule, ...]:
    """The plan's; of a model that is already quantized only those that leave it as it is."""
    rules = context.job.plan.candidates
    if not context.is_quantized or len(rules) == 1:
        return rules
    # where all are forms of the precision that was asked for, each of them leaves the model as it is
    return tuple(rule for rule in rules if rule.scheme is None and not rule.converts_graph) or rules[:1]


def make_left_out(entrants: Sequence[Entrant], trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """The trials, with those made that were left out for one that did not pass in the end; in no form but the first."""
    by_name = {entrant.name: entrant for entrant in entrants}
    completed = [*trials]
    for place, trial in enumerate(trials):
        if not trial.left_out:
            continue
        entrant = by_name[trial.target]
        rule = next(rule for rule in entrant.context.job.plan.candidates if rule.name == trial.precision)
        if not why_not_made(entrant, rule, completed):
            number, original = trial.number, float_original(trials)
            completed[place] = run_trial(entrant.context, rule, number=number, original=original, is_only=False)
    return tuple(completed)


def why_not_made(entrant: Entrant, rule: PrecisionRule, trials: Sequence[Trial]) -> str:
    """Why a candidate need not be made; empty where it must be.

    One of a target that could not be raced is made where nothing passes, any other where what passes is not faster than
    the most that can be expected of it.
    """
    if entrant.standing == Standing.NOT_RACED and choose_trial(trials):
        return entrant.why
    # where one of its candidates was measured, the race's interval will do, however disturbed
    was_tried = any(trial.target == entrant.name and trial.made is not None for trial in trials)
    most, slack = entrant.high if was_tried else entrant.most, CLOSE if entrant.name else 0.0
    return why_left_out(entrant.context, rule, trials, most=most, slack=slack)
