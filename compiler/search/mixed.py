"""The trials of one quantized candidate: as the quantizer makes it, with other options, with its worst layers float."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.capability import PrecisionRule
from compiler.judge import Judge
from compiler.portable import BORDER
from compiler.quant import QuantOptions, can_balance
from compiler.search.accuracy_trial import try_accuracy
from compiler.search.bench import Bench
from compiler.search.made import Made
from compiler.search.quantized import LayerRank, Variant, float_entry, rank_layers
from compiler.search.reversal import FAR, WHY, fewest_layers, is_far, is_gain
from compiler.search.trial import Trial, run_trial
from compiler.search.work import list_work

log = logging.getLogger("fleetc.build")

ALTERNATIVES: tuple[QuantOptions, ...] = (
    QuantOptions(balance="activations"),
    QuantOptions(observer="percentile"),
    QuantOptions(observer="min-max"),
    QuantOptions(observer="entropy"),
    QuantOptions(balance="weights"),
)
"""Options that are tried before layers go back to float, since they cost little speed or none: `docs/adr/0018`."""

MOST_WORK = 0.5
"""Beyond this part of the multiply-accumulates in float there is nothing left to gain from the others."""

RETRIES = 2
"""How often layers are added where the artifact loses more than its border model did."""


@dataclass
class Trail:
    """The trials of one candidate so far.

    Args:
        bench: The device.
        rule: The candidate's precision.
        judge: What its accuracy is judged by.
        limit: Most points it may lose.
        before: How many trials the search had made before the others but the first.
        trials: In order; the first is the candidate as it is made by default.
    """

    bench: Bench
    rule: PrecisionRule
    judge: Judge
    limit: float
    before: int
    trials: list[Trial]

    @property
    def runs_here(self) -> bool:
        """Whether the first trial's artifact ran on this machine."""
        first = self.trials[0].made
        return first is not None and first.verdict.evidence == Evidence.HOST

    @property
    def number(self) -> int:
        """Of the next trial."""
        return self.before + len(self.trials)

    @property
    def budget(self) -> int:
        """Trials that may still be made, with one kept for the build of what was found."""
        return self.bench.options.search_budget - self.number

    def note(self, text: str) -> None:
        """Says, with the last trial, why the search goes no further there."""
        log.info("%s: %s: %s", self.bench.name, self.rule.name, text)
        self.trials[-1] = replace(self.trials[-1], note=text)

    def measure(self, variant: Variant, purpose: str) -> float:
        """The judged drop of a variant, and no more of it: infinite where it cannot be made.

        The artifact is asked where it runs on this machine, and the border model elsewhere.
        """
        log.info(
            "%s: trial %d: %s, %d layers in float", self.bench.name, self.number, self.rule.name, len(variant.kept)
        )
        trial = try_accuracy(
            self.bench,
            self.rule,
            self.judge,
            number=self.number,
            purpose=purpose,
            limit=self.limit,
            variant=variant,
            on_artifact=self.runs_here,
        )
        self.trials.append(trial)
        return _drop(trial) if trial.accuracy else math.inf


def search_mixed(
    bench: Bench, judge: Judge, limit: float, *, first: Trial, number: int, original: Trial | None
) -> tuple[Trial, ...]:
    """Other forms of a quantized candidate that loses too much; the last one holds the accuracy limit, if any does.

    Args:
        bench: The device.
        judge: What accuracy is judged by.
        limit: Most points it may lose.
        first: The candidate's trial, as the quantizer makes it by default.
        number: Of the next trial.
        original: The float original's trial.

    Returns:
        The candidate's trial, with a note where the search ended with it, and those after it.
    """
    if first.made is None or _drop(first) <= limit:
        return (first,)
    trail = Trail(bench, first.made.plan.rule, judge, limit, number - 1, [first])
    options, drop = _best_options(trail, _drop(first), _alternatives(trail.rule, first.made))
    if drop <= limit:
        _build(trail, Variant(options), original, "options")
    else:
        _revert(trail, options, drop, original, first)
    return tuple(trail.trials)


def _alternatives(rule: PrecisionRule, made: Made) -> list[QuantOptions]:
    """Those that change anything: ranges that are observed, and ranges that the model lets be balanced."""
    if rule.scheme is None or not rule.scheme.needs_calibration:
        return []
    rewritten = float_entry(made.entries)
    model = ir.load(rewritten.files / BORDER)
    return [options for options in ALTERNATIVES if can_balance(model, options.balance)]


def _best_options(trail: Trail, default: float, alternatives: list[QuantOptions]) -> tuple[QuantOptions, float]:
    """The options that lose least; they are tried until one holds the limit."""
    best, least = QuantOptions(), default
    for options in alternatives:
        if trail.budget <= 0:
            break
        drop = trail.measure(Variant(options), "options")
        useless = is_far(least, trail.limit) and not is_gain(drop, least, trail.limit)
        if drop < least:
            best, least = options, drop
        if drop <= trail.limit:
            break
        if useless:
            trail.note(f"no more options are tried: over {FAR:g} times the limit is lost, and these gain nothing")
            break
    return best, least


def _revert(trail: Trail, options: QuantOptions, drop: float, original: Trial | None, first: Trial) -> None:
    """Worst layers back to float until the limit holds, on the border model and then on the artifact."""
    if first.made is None:
        return
    with trail.bench.clock.timed("sensitivity"):
        ranks = rank_layers(trail.bench, trail.rule, Variant(), first.made.border.entries)
    most = _most_layers(ranks, first)
    found = fewest_layers(
        lambda count: trail.measure(_keeping(options, ranks, count), "reversal"),
        most=most,
        limit=trail.limit,
        first=drop,
        budget=trail.budget,
    )
    if found.count is None:
        trail.note(f"layers in float do not help: {WHY[found.why]}")
        return
    count = found.count
    for _ in range(1 + RETRIES):
        trial = _build(trail, _keeping(options, ranks, count), original, "reversal")
        if trial.error or _drop(trial) <= trail.limit or count >= most or trail.budget <= 0:
            return
        count = min(most, count + max(1, count // 4))


def _build(trail: Trail, variant: Variant, original: Trial | None, purpose: str) -> Trial:
    trial = run_trial(
        trail.bench,
        trail.rule,
        number=trail.number,
        original=original,
        is_only=False,
        variant=variant,
        purpose=purpose,
    )
    trail.trials.append(trial)
    return trial


def _keeping(options: QuantOptions, ranks: Sequence[LayerRank], count: int) -> Variant:
    """The worst `count` layers in float, each with its reason."""
    kept = {
        one.node: f"reverted to float as number {index} of the worst: quantized alone it leaves {one.sqnr_db:.1f} dB"
        for index, one in enumerate(ranks[:count], start=1)
    }
    return Variant(options, kept)


def _most_layers(ranks: Sequence[LayerRank], first: Trial) -> int:
    """How many of the worst layers hold no more than `MOST_WORK` of the multiply-accumulates; never all of them."""
    works = list_work(first.made.border.load()) if first.made else ()
    macs = {one.node: one.macs for one in works}
    total, done = sum(macs.values()) or 1.0, 0.0
    for count, one in enumerate(ranks):
        done += macs.get(one.node, 0.0)
        if done > MOST_WORK * total:
            return min(count, len(ranks) - 1)
    return max(0, len(ranks) - 1)


def _drop(trial: Trial) -> float:
    """The judged drop; nothing lost where nobody could measure it."""
    return trial.accuracy.drop.judged_pct if trial.accuracy and trial.accuracy.drop else 0.0
