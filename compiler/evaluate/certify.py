"""The last word on what was chosen: its drop on data that did not choose it.

A trial was chosen because it did well on some samples, so its drop on these is too good on average, and the more so the
more trials there were (the winner's curse). `docs/statistics.md` says what this corrects and what it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.artifact.schema import AccuracyDrop, Certified
from compiler.errors import InternalError
from compiler.evaluate.bootstrap import LEVEL_PCT, Measured, Values, interval, resampled
from compiler.evaluate.split import Groups, Split
from compiler.evaluate.task import MeasuredDrop, choose_rule, known_end
from compiler.fleet.data import Rule


@dataclass(frozen=True)
class Contender:
    """A trial that could have been chosen.

    Args:
        reference: The float model's metric on all samples.
        candidate: The trial's.
    """

    reference: Measured
    candidate: Measured

    @property
    def measured(self) -> tuple[Measured, Measured]:
        """Both, the float model's first."""
        return self.reference, self.candidate


def corrected_level(rank: int) -> float:
    """The interval's level in percent for the trial that is certified as number `rank` (Bonferroni)."""
    return 100.0 - (100.0 - LEVEL_PCT) / rank


def certify_held_out(
    drop: AccuracyDrop, split: Split, *, asked: Rule, limit_pct: float, rank: int, looks: int
) -> Certified:
    """The chosen trial's drop on the half that was held out.

    Args:
        drop: Its drop on that half.
        split: How the data were divided.
        asked: The fleet file's rule.
        limit_pct: The limit.
        rank: How many chosen trials were certified on that half, this one included.
        looks: How many trials were scored on the other half.
    """
    level = corrected_level(rank)
    ends = [math.nan if end is None else end for end in (drop.low_pct, drop.high_pct)]
    if isinstance(drop, MeasuredDrop) and drop.measured is not None and rank > 1:
        ends = list(interval(_resampled_drops(*drop.measured), level_pct=level))
    figure = _Figure(drop.metric, drop.drop_pct, (ends[0], ends[1]), level, drop.candidate.count)
    return _certified(figure, split, asked=asked, limit_pct=limit_pct, agreed=(1, 1), looks=looks)


def cross_fit(
    contenders: Sequence[Contender],
    chosen: int,
    split: Split,
    *,
    metric: str,
    asked: Rule,
    limit_pct: float,
    rank: int,
) -> Certified | None:
    """The drop of what is chosen, each fold judged by the trial that the other folds choose.

    Args:
        contenders: The trials that could have been chosen, the preferred one first.
        chosen: Which of them is delivered.
        split: The folds.
        metric: The task's metric.
        asked: The fleet file's rule.
        limit_pct: The limit.
        rank: How many chosen trials were certified, this one included.

    Returns:
        None where the metric is no mean over decisions, and folds cannot be put together.
    """
    if any(measured.decisions is None for pair in contenders for measured in (pair.reference, pair.candidate)):
        return None
    winners = [_choose(contenders, fold, limit_pct) for fold in split.folds]
    lost, counts = _lost_by_group(contenders, winners, split.folds)
    level, count = corrected_level(rank), int(counts.sum())
    ends = interval(_resampled_mixture(contenders, winners, split.folds, counts), level_pct=level)
    figure = _Figure(metric, float(lost.sum() / count), ends, level, count)
    agreed = (sum(winner == chosen for winner in winners), len(split.folds))
    return _certified(figure, split, asked=asked, limit_pct=limit_pct, agreed=agreed, looks=len(contenders))


@dataclass(frozen=True)
class _Figure:
    """A drop in percentage points with its interval, and the number of decisions it is the mean of."""

    metric: str
    drop_pct: float
    ends_pct: tuple[float, float]
    level_pct: float
    count: int


def _certified(
    figure: _Figure, split: Split, *, asked: Rule, limit_pct: float, agreed: tuple[int, int], looks: int
) -> Certified:
    """The drop with the rule that the limit is judged by; `agreed` is of how many folds, and of how many in all."""
    low, high = figure.ends_pct
    rule, why = choose_rule(asked, figure.count, limit_pct, high)
    return Certified(
        how=split.kind,
        metric=figure.metric,
        drop_pct=figure.drop_pct,
        low_pct=known_end(low),
        high_pct=known_end(high),
        level_pct=figure.level_pct,
        rule=rule,
        judged_pct=figure.drop_pct if rule == "point" else high,
        count=figure.count,
        agreed=agreed[0],
        folds=agreed[1],
        looks=looks,
        why=f"{why}; {split.why}",
    )


def _choose(contenders: Sequence[Contender], fold: Groups, limit_pct: float) -> int:
    """What the groups outside a fold choose: the preferred trial that holds the limit there, else what loses least."""
    drops = []
    for pair in contenders:
        outside = np.ones((1, pair.reference.units))
        outside[0, fold] = 0.0
        drops.append(float(pair.reference.resample(outside)[0] - pair.candidate.resample(outside)[0]))
    holding = [index for index, drop in enumerate(drops) if drop <= limit_pct]
    return holding[0] if holding else int(np.nanargmin(drops)) if np.isfinite(drops).any() else 0


def _lost_by_group(
    contenders: Sequence[Contender], winners: Sequence[int], folds: Sequence[Groups]
) -> tuple[Values, Values]:
    """What the decisions of each group lose together, and how many they are.

    A metric's own threshold is that of all samples: it is set for each model alike, and a fold has too few for it.
    """
    units = contenders[0].reference.units
    lost, counts = np.zeros(units), np.zeros(units)
    for winner, fold in zip(winners, folds, strict=True):
        before, decided = _by_group(contenders[winner].reference)
        after, _ = _by_group(contenders[winner].candidate)
        lost[fold], counts[fold] = before[fold] - after[fold], decided[fold]
    return lost, counts


def _by_group(measured: Measured) -> tuple[Values, Values]:
    """Sum and number of each group's decisions."""
    decisions = measured.decisions
    if decisions is None:
        raise InternalError("folds of a metric that is no mean over decisions")
    sums = np.bincount(decisions.owners, decisions.values, minlength=measured.units)
    counts: Values = np.bincount(decisions.owners, minlength=measured.units).astype(np.float64)
    return sums.astype(np.float64), counts


def _resampled_mixture(
    contenders: Sequence[Contender], winners: Sequence[int], folds: Sequence[Groups], counts: Values
) -> Values:
    """The drop on resamples of all groups: of the trials that judged folds, each by the share of decisions it judged.

    Thresholds are set anew in each resample, so that their part of the uncertainty is in the interval.
    """
    shares = dict.fromkeys(winners, 0.0)
    for winner, fold in zip(winners, folds, strict=True):
        shares[winner] += float(counts[fold].sum() / counts.sum())
    drops = [share * _resampled_drops(*contenders[winner].measured) for winner, share in shares.items()]
    mixture: Values = np.sum(drops, axis=0)
    return mixture


def _resampled_drops(reference: Measured, candidate: Measured) -> Values:
    was, now = resampled([reference, candidate])
    return was - now
