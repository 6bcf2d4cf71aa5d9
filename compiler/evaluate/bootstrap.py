"""Intervals of a metric by the bootstrap: units are drawn again with replacement, and the metric is computed anew.

A resample is a row of multiplicities, how often each unit was drawn, so that a metric of weighted sums takes thousands
of resamples in a few matrix operations. Two models that are given the same rows are compared in pairs (Efron and
Tibshirani, An Introduction to the Bootstrap, chapters 10 and 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""Multiplicities (resamples, units)."""

Values = NDArray[np.float64]

# the ends of a 95 % interval are far out in the tails: with hundreds they would differ from seed to seed
RESAMPLES = 2000
LEAST_RESAMPLES = 100
# fixed: the same outputs must give the same interval, or a gate would differ from run to run
SEED = 20261124
LEVEL_PCT = 95.0

_MAX_WORK = 1 << 31
"""Elements touched by all resamples together: some ten seconds; a set beyond it gets fewer resamples."""
_MAX_ELEMENTS = 1 << 22
"""Elements of one block of resamples: 32 MB as float64."""


@dataclass(frozen=True)
class Decisions:
    """The decisions that a metric is the mean of, so that groups of them can be judged apart.

    Args:
        values: What each is worth, in percent: 0 or 100 where it is wrong or right.
        owners: The unit that each belongs to.
    """

    values: Values
    owners: NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """A metric of one model on one set, and how to compute it on any resample of the set.

    Args:
        value_pct: The metric on the set as it is, in percent; more is better.
        details: Other figures of the same outputs, by name.
        count: Decisions the metric counts.
        units: What is drawn again: people, or samples.
        resample: Weights (resamples, units) → the metric in percent (resamples,); NaN where it has no value.
        width: Elements one resample touches, ≥ units.
        resamples: How many resamples are worth their time.
        decisions: What the metric is the mean of; None where it is one number for the whole set.
    """

    value_pct: float
    details: Mapping[str, float]
    count: int
    units: int
    resample: Callable[[Weights], Values]
    width: int = 0
    resamples: int = RESAMPLES
    decisions: Decisions | None = None


def resampled(models: Sequence[Measured]) -> list[Values]:
    """The metric of each model on the same resamples, the same ones each time."""
    width = max(1, *(max(model.width, model.units) for model in models))
    count = min(*(model.resamples for model in models), max(LEAST_RESAMPLES, _MAX_WORK // width), RESAMPLES)
    blocks = [[model.resample(weights) for model in models] for weights in _weights(models[0].units, count, width)]
    return [np.concatenate(values) for values in zip(*blocks, strict=True)]


def interval(values: Values, *, level_pct: float = LEVEL_PCT) -> tuple[float, float]:
    """The interval by percentiles; resamples without a value are left out, NaN where few have one."""
    known = values[np.isfinite(values)]
    # a metric that half of the resamples do not have, such as one of an absent class, has no interval
    if 2 * len(known) < len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [(100 - level_pct) / 2, (100 + level_pct) / 2])
    return float(low), float(high)


def _weights(units: int, count: int, width: int) -> Iterator[Weights]:
    random = np.random.Generator(np.random.PCG64(SEED))
    rows = max(1, min(count, _MAX_ELEMENTS // width))
    for start in range(0, count, rows):
        size = min(rows, count - start)
        drawn = random.integers(0, units, (size, units)) + np.arange(size)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
