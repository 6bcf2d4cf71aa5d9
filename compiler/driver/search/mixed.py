"""The trials of one quantized candidate: as the quantizer makes it, with other options, with its worst layers float."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compiler.artifact.manifest import BORDER
from compiler.artifact.schema import Purpose
from compiler.compress.quant import QuantOptions, can_balance
from compiler.driver.search.float_layers import FAR, WHY, fewest_layers, is_far, is_gain
from compiler.driver.search.follow_ups import FollowUps, judged_drop
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.quantize import Variant, float_entry
from compiler.driver.stages.sensitivity import LayerRank, rank_layers
from compiler.driver.work import list_work
from compiler.target.capability import PrecisionRule

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


def search_mixed(
    context: BuildContext, judge: AccuracyTest, limit: float, *, first: Trial, number: int, original: Trial | None
) -> tuple[Trial, ...]:
    """Other forms of a quantized candidate that loses too much; the last one holds the accuracy limit, if any does.

    Args:
        context: The device.
        judge: What accuracy is judged by.
        limit: Most points it may lose.
        first: The candidate's trial, as the quantizer makes it by default.
        number: Of the next trial.
        original: The float original's trial.

    Returns:
        The candidate's trial, with a note where the search ended with it, and those after it.
    """
    if first.made is None:
        return (first,)
    earlier = number - 2  # all trials so far but `first`, which is among the follow-ups
    follow_ups = FollowUps(context, first.made, judge, limit, earlier, [first])
    options, drop = _best_options(follow_ups, judged_drop(first), _alternatives(follow_ups.rule, first.made))
    if drop <= limit:
        follow_ups.build(context, Variant(options), Purpose.OPTIONS, original=original)
    else:
        _revert(follow_ups, options, drop, original)
    return tuple(follow_ups.trials)


def _alternatives(rule: PrecisionRule, made: BuiltCandidate) -> list[QuantOptions]:
    """Those that change anything: ranges that are observed, and ranges that the model lets be balanced."""
    if rule.scheme is None or not rule.scheme.needs_calibration:
        return []
    rewritten = float_entry(made.entries)
    model = ir.load(rewritten.files / BORDER)
    return [options for options in ALTERNATIVES if can_balance(model, options.balance)]


def _best_options(
    follow_ups: FollowUps, default: float, alternatives: list[QuantOptions]
) -> tuple[QuantOptions, float]:
    """The options that lose least; they are tried until one holds the limit."""
    best, least = QuantOptions(), default
    for options in alternatives:
        if follow_ups.budget <= 0:
            break
        drop = judged_drop(follow_ups.measure(follow_ups.context, Variant(options), Purpose.OPTIONS))
        useless = is_far(least, follow_ups.limit) and not is_gain(drop, least, follow_ups.limit)
        if drop < least:
            best, least = options, drop
        if drop <= follow_ups.limit:
            break
        if useless:
            follow_ups.note(f"no more options are tried: over {FAR:g} times the limit is lost, and these gain nothing")
            break
    return best, least


def _revert(follow_ups: FollowUps, options: QuantOptions, drop: float, original: Trial | None) -> None:
    """Worst layers back to float until the limit holds, on the border model and then on the artifact."""
    context = follow_ups.context
    ranks = rank_layers(context, follow_ups.rule, Variant(), follow_ups.start.border.entries)
    most = _most_layers(ranks, follow_ups.start)
    fewest = fewest_layers(
        lambda count: judged_drop(follow_ups.measure(context, _keeping(options, ranks, count), Purpose.FLOAT_FALLBACK)),
        most=most,
        limit=follow_ups.limit,
        first=drop,
        budget=follow_ups.budget,
    )
    if fewest.count is None:
        follow_ups.note(f"layers in float do not help: {WHY[fewest.why]}")
        return
    count = fewest.count
    for _ in range(1 + RETRIES):
        trial = follow_ups.build(context, _keeping(options, ranks, count), Purpose.FLOAT_FALLBACK, original=original)
        if trial.error or judged_drop(trial) <= follow_ups.limit or count >= most or follow_ups.budget <= 0:
            return
        count = min(most, count + max(1, count // 4))


def _keeping(options: QuantOptions, ranks: Sequence[LayerRank], count: int) -> Variant:
    """The worst `count` layers in float, each with its reason."""
    reasons = {
        rank.node: f"reverted to float as number {index} of the worst: quantized alone it leaves {rank.sqnr_db:.1f} dB"
        for index, rank in enumerate(ranks[:count], start=1)
    }
    return Variant(options, reasons)


def _most_layers(ranks: Sequence[LayerRank], first: BuiltCandidate) -> int:
    """How many of the worst layers hold no more than `MOST_WORK` of the multiply-accumulates; never all of them."""
    macs = {layer.node: layer.macs for layer in list_work(first.border.load())}
    total, done = sum(macs.values()) or 1.0, 0.0
    for count, layer in enumerate(ranks):
        done += macs.get(layer.node, 0.0)
        if done > MOST_WORK * total:
            return min(count, len(ranks) - 1)
    return max(0, len(ranks) - 1)
