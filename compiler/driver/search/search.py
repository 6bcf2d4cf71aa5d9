"""The search for a device's precision: trials in order of expected gain, each judged by all gates; the best is settled.

    baseline → candidate → candidate → … → other forms → pruning → the fastest that passes, or all figures and the
                                              │             │        nearest limits
                                              │             └ of the fastest: as much as the limit holds, if it gains
                                              └ of those that break the accuracy limit and would be faster than what
                                                passes: other options, then worst layers back to float

It is the one loop of a build outside tuning. Every part of a trial is a stage in the store, so a search that was killed
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.artifact.schema import GenerationFacts, Layer, Purpose, Saliency
from compiler.driver.measure.answers import describe_generation
from compiler.driver.measure.layers import list_layers
from compiler.driver.measure.saliency import show_saliency
from compiler.driver.search.certify import choose_certified
from compiler.driver.search.expected import order_candidates, skip_trial, why_left_out
from compiler.driver.search.follow_ups import judged_drop
from compiler.driver.search.mixed import search_mixed
from compiler.driver.search.prune_ratio import search_ratio
from compiler.driver.search.select import beaten_by, choose_trial, describe, explain_choice, explain_failure
from compiler.driver.search.trial import Trial, is_missing, run_trial
from compiler.driver.stages.border_parity import hold_to_model
from compiler.driver.stages.candidate import BuiltCandidate, make_candidate_border, with_kernels
from compiler.driver.stages.context import BuildContext, with_plan
from compiler.driver.stages.quantize import Variant
from compiler.driver.stages.recover import read_pruning
from compiler.driver.stages.sensitivity import rank_layers
from compiler.errors import CompilerError
from compiler.fleet import Kept
from compiler.plan import SearchEffort, settle, settle_pruning
from compiler.plan.pruning import UNPRUNED, Pruning
from compiler.store import StageName
from compiler.target.capability import PrecisionRule

__all__ = ["BuildContext", "BuiltCandidate", "SearchResult", "Trial", "read_pruning", "search_precision"]


@dataclass(frozen=True)
class SearchResult:
    """What the search came to.

    Args:
        trials: All of them, in order.
        chosen: The one to deliver; None if none passed.
        made: The same, under the settled plan with its reason.
        error: Why none passed.
        layers: Every layer of what is delivered.
        saliency: How similar its saliency maps are to the float model's; None where nothing asks.
        generation: What was seen of a language model; None of another model.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None = None
    made: BuiltCandidate | None = None
    error: CompilerError | None = None
    layers: tuple[Layer, ...] = ()
    saliency: Saliency | None = None
    generation: GenerationFacts | None = None

    def __post_init__(self) -> None:
        if (self.made is None) != (self.error is not None):
            raise ValueError("a search gives either a build or an error")


def search_precision(context: BuildContext) -> SearchResult:
    """Makes the candidates of a device's plan and settles on one.

    Raises:
        CompilerError: There is one candidate and it cannot be made, or this machine lacks the toolchain.
    """
    plan = context.job.plan
    if not plan.constraints.any:
        only = run_trial(context, plan.rule, number=1, original=None, is_only=True)
        return _result(context, (only,), only, plan.reason, plan.pruning)
    trials = _run_trials(context)
    if plan.pruning.is_searched:
        pruned_search = search_ratio(context, trials, _original(trials))
        trials = (*trials, *pruned_search.trials)
        plan = settle_pruning(plan, Pruning(0.0, False, pruned_search.reason))
    trials, chosen = _certified(context, trials)
    # what was left out for a better one is made after all where that one fails on the held-out data
    while (more := _make_left_out(context, trials)) != trials:
        trials, chosen = _certified(context, more)
    if chosen is None or chosen.made is None:
        return SearchResult(trials, error=explain_failure(trials, context.name))
    context.clock.note(f"{chosen.precision}: {describe(chosen)}")
    is_choice = len(plan.candidates) > 1 or context.job.plan.pruning.is_searched
    return _result(context, trials, chosen, explain_choice(chosen, trials) if is_choice else plan.reason, plan.pruning)


def _certified(context: BuildContext, trials: tuple[Trial, ...]) -> tuple[tuple[Trial, ...], Trial | None]:
    with context.clock.timed(StageName.ACCURACY):
        return choose_certified(context, trials)


def _make_left_out(context: BuildContext, trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """The trials, with those made that were left out for one that did not pass in the end; in no form but the first."""
    rules = {rule.name: rule for rule in context.job.plan.candidates}
    completed = [*trials]
    for place, trial in enumerate(trials):
        if trial.left_out and not why_left_out(context, rules[trial.precision], completed):
            number, original = trial.number, _original(trials)
            completed[place] = run_trial(
                context, rules[trial.precision], number=number, original=original, is_only=False
            )
    return tuple(completed)


def _result(
    context: BuildContext, trials: tuple[Trial, ...], chosen: Trial, reason: str, pruning: Pruning
) -> SearchResult:
    if chosen.made is None:
        return SearchResult(trials, error=explain_failure(trials, context.name))
    # from the plan of the trial, not of the job: it has what the search found beside the precision
    settled = settle(chosen.made.plan, chosen.made.plan.rule, reason)
    decided = replace(pruning, ratio=settled.pruning.ratio, recover_s=settled.pruning.recover_s)
    made = replace(chosen.made, plan=hold_to_model(settle_pruning(settled, decided), context.ready.model))
    made = with_kernels(context, made)
    with context.clock.timed(StageName.LAYERS):
        layers = list_layers(context, made, sqnr_db=_errors(context, chosen.made))
    explains = context.job.plan.constraints.explains
    saliency = chosen.saliency or (show_saliency(context, chosen.made) if explains else None)
    generation = describe_generation(context, made)
    return SearchResult(trials, chosen, made, layers=layers, saliency=saliency, generation=generation)


def _errors(context: BuildContext, made: BuiltCandidate) -> dict[str, float]:
    """Layer → signal-to-noise ratio of the outputs when it alone is quantized; empty where no gate asks."""
    rule = made.plan.rule
    if rule.scheme is None or context.is_quantized or not context.job.plan.constraints.any:
        return {}
    if rule.scheme.weights is not None:  # what each layer costs is in its reason
        return {}
    border = make_candidate_border(context, made.plan, Variant())
    return {layer.node: layer.sqnr_db for layer in rank_layers(context, rule, Variant(), border.entries)}


def _run_trials(context: BuildContext) -> tuple[Trial, ...]:
    """The baseline, every candidate as it is made by default, then other forms of those that lose too much."""
    plan = context.job.plan
    trials: list[Trial] = []
    original = None
    candidates = _candidates(context)
    is_only = len(candidates) == 1
    if plan.baseline is not None:
        original = _run_baseline(context, plan.baseline, is_only=candidates == (plan.baseline,))
        trials.append(original)
        # what the baseline lacks, all others lack too: no use in failing each of them
        if is_missing(original) and original.error:
            raise original.error
    others = [rule for rule in candidates if rule != plan.baseline or plan.pruning.ratio]
    serves = context.job.device.serve
    keeps_ladder = serves is not None and serves.ladder == Kept.AUTO  # then slower builds are wanted, too
    may_skip = context.options.search == SearchEffort.QUICK and not plan.pruning.ratio and not keeps_ladder
    for rule in order_candidates(context, others, original) if may_skip else others:
        number = len(trials) + 1
        if why := why_left_out(context, rule, trials) if may_skip else "":
            trials.append(skip_trial(context, rule, number=number, why=why))
            continue
        _tell(context, rule, trials)
        trials.append(run_trial(context, rule, number=number, original=original, is_only=is_only))
    return tuple(trials) if is_only or context.is_quantized else _with_others(context, trials, original)


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
            note = f"no other form is tried: {better.precision} passes, and is faster, or measured where this is not"
            context.clock.note(f"{first.precision}: {note}")
            extended[place] = replace(first, note=note)
            continue
        first, *others = search_mixed(context, judge, limit, first=first, number=len(extended) + 1, original=original)
        extended[place] = first
        extended += others
    return tuple(extended)


def _run_baseline(context: BuildContext, rule: PrecisionRule, *, is_only: bool) -> Trial:
    """The float original, which is a candidate too unless what is delivered must be pruned."""
    plan = context.job.plan
    if not plan.pruning.ratio:
        return run_trial(context, rule, number=1, original=None, is_only=is_only)
    whole = with_plan(context, settle_pruning(plan, UNPRUNED))
    return run_trial(whole, rule, number=1, original=None, is_only=False, purpose=Purpose.BASELINE)


def _original(trials: tuple[Trial, ...]) -> Trial | None:
    return next((trial for trial in trials if trial.made is not None and trial.made.plan.is_baseline), None)


def _tell(context: BuildContext, rule: PrecisionRule, trials: Sequence[Trial]) -> None:
    best = choose_trial(trials)
    words = f"{best.precision}, {describe(best)}" if best else "none"
    context.clock.note(f"next {rule.name}; best so far: {words}")


def _candidates(context: BuildContext) -> tuple[PrecisionRule, ...]:
    """The plan's; of a model that is already quantized only those that leave it as it is."""
    rules = context.job.plan.candidates
    if not context.is_quantized or len(rules) == 1:
        return rules
    context.clock.note("the model is already quantized: it is verified and passed on")
    return tuple(rule for rule in rules if rule.scheme is None and not rule.converts_graph)
