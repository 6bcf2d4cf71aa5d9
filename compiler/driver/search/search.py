"""The search for a device's precision: trials in order of expected gain, each judged by all gates; the best is settled.

    baseline → candidate → candidate → … → other forms → pruning → the fastest that passes, or all figures and the
                                              │             │        nearest limits
                                              │             └ of the fastest: as much as the limit holds, if it gains
                                              └ of those that break the accuracy limit and would be faster than what
                                                passes: other options, then worst layers back to float

Of several targets all are in one search (`contest.py`). It is the one loop of a build outside tuning. Every part of a
trial is a stage in the store, so a search that was killed goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.artifact.schema import Competitor, FinalRace, GenerationFacts, Layer, Saliency
from compiler.driver.measure.answers import describe_generation
from compiler.driver.measure.layers import list_layers
from compiler.driver.measure.saliency import show_saliency
from compiler.driver.search.certify import choose_certified
from compiler.driver.search.contest import Entrant, enter_targets, explain_target, fastest_first, standings
from compiler.driver.search.prune_ratio import search_ratio
from compiler.driver.search.select import describe, explain_choice, explain_failure
from compiler.driver.search.trial import Trial, float_original, run_trial
from compiler.driver.search.trials import leave_out_baseline, make_left_out, run_trials
from compiler.driver.stages.border_parity import hold_to_model
from compiler.driver.stages.candidate import BuiltCandidate, make_candidate_border, with_kernels
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.quantize import Variant
from compiler.driver.stages.recover import read_pruning
from compiler.driver.stages.sensitivity import rank_layers
from compiler.errors import CompilerError
from compiler.plan import settle, settle_pruning, settle_target
from compiler.plan.pruning import Pruning
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
        contest: How each target of the device came out; none where it has one.
        generation: What was seen of a language model; None of another model.
        final_races: The races of the best builds against each other.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None = None
    made: BuiltCandidate | None = None
    error: CompilerError | None = None
    layers: tuple[Layer, ...] = ()
    saliency: Saliency | None = None
    contest: tuple[Competitor, ...] = ()
    generation: GenerationFacts | None = None
    final_races: tuple[FinalRace, ...] = ()

    def __post_init__(self) -> None:
        if (self.made is None) != (self.error is not None):
            raise ValueError("a search gives either a build or an error")


def search_precision(context: BuildContext) -> SearchResult:
    """Makes the candidates of a device's plan and settles on one.

    Raises:
        CompilerError: There is one candidate and it cannot be made, or this machine lacks the toolchain.
    """
    if not context.job.plan.constraints.any:
        return _fastest_target(context) if context.job.others else _only_trial(context)
    context = leave_out_baseline(context)
    plan = context.job.plan
    entrants, trials = run_trials(context)
    if plan.pruning.is_searched:
        pruned_search = search_ratio(context, trials, float_original(trials))
        trials = (*trials, *pruned_search.trials)
        plan = settle_pruning(plan, Pruning(0.0, False, pruned_search.reason))
    choice = choose_certified(context, trials)
    # what was left out for a better one is made after all where that one fails on the held-out data
    while (more := make_left_out(entrants, choice.trials)) != choice.trials:
        choice = choose_certified(context, more)
    trials, chosen = choice.trials, choice.chosen
    contest = standings(entrants, trials, chosen)
    if chosen is None or chosen.made is None:
        return SearchResult(trials, error=explain_failure(trials, context.name), contest=contest)
    context.clock.note(f"{chosen.label}: {describe(chosen)}")
    is_choice = len(plan.candidates) > 1 or context.job.plan.pruning.is_searched or bool(plan.targets)
    reason = explain_choice(chosen, trials, choice.races) if is_choice else plan.reason
    result = _result(context.through(chosen.made.plan), trials, chosen, reason, plan.pruning, contest)
    return replace(result, final_races=choice.races)


def _only_trial(context: BuildContext) -> SearchResult:
    plan = context.job.plan
    only = run_trial(context, plan.rule, number=1, original=None, is_only=True)
    planned = standings((Entrant(context),), (only,), only)  # others may have been asked for, and have no plan
    return _result(context, (only,), only, plan.reason, plan.pruning, planned)


def _fastest_target(context: BuildContext) -> SearchResult:
    """The build of the target whose first build is the fastest, where nothing else is judged."""
    entrants, trials = enter_targets(context, lambda plan: plan.rule, _try_ungated)
    for entrant in fastest_first(entrants):
        chosen = next((trial for trial in trials if trial.target == entrant.name), None)
        if chosen is None:
            chosen = _try_ungated(entrant.context, entrant.context.job.plan.rule, len(trials) + 1)
            trials = (*trials, chosen)
        if chosen.made is not None:
            plan, contest = entrant.context.job.plan, standings(entrants, trials, chosen)
            return _result(entrant.context, trials, chosen, plan.reason, plan.pruning, contest)
    error = explain_failure(trials, context.name)
    return SearchResult(trials, error=error, contest=standings(entrants, trials, None))


def _try_ungated(context: BuildContext, rule: PrecisionRule, number: int) -> Trial:
    return run_trial(context, rule, number=number, original=None, is_only=False)


def _result(
    context: BuildContext,
    trials: tuple[Trial, ...],
    chosen: Trial,
    reason: str,
    pruning: Pruning,
    contest: tuple[Competitor, ...],
) -> SearchResult:
    if chosen.made is None:
        return SearchResult(trials, error=explain_failure(trials, context.name), contest=contest)
    # from the plan of the trial, not of the job: it has what the search found beside the precision
    settled = settle_target(settle(chosen.made.plan, chosen.made.plan.rule, reason), explain_target(contest))
    decided = replace(pruning, ratio=settled.pruning.ratio, recover_s=settled.pruning.recover_s)
    made = replace(chosen.made, plan=hold_to_model(settle_pruning(settled, decided), context.ready.model))
    made = with_kernels(context, made)
    with context.clock.timed(StageName.LAYERS):
        layers = list_layers(context, made, sqnr_db=_errors(context, chosen.made))
    explains = context.job.plan.constraints.explains
    saliency = chosen.saliency or (show_saliency(context, chosen.made) if explains else None)
    generation = describe_generation(context, made)
    return SearchResult(trials, chosen, made, layers=layers, saliency=saliency, generation=generation, contest=contest)


def _errors(context: BuildContext, made: BuiltCandidate) -> dict[str, float]:
    """Layer → signal-to-noise ratio of the outputs when it alone is quantized; empty where no gate asks."""
    rule = made.plan.rule
    if rule.scheme is None or context.is_quantized or not context.job.plan.constraints.any:
        return {}
    if rule.scheme.weights is not None:  # what each layer costs is in its reason
        return {}
    border = make_candidate_border(context, made.plan, Variant())
    return {layer.node: layer.sqnr_db for layer in rank_layers(context, rule, Variant(), border.entries)}
