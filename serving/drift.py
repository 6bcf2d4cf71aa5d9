"""Whether requests still look like the calibration data: out-of-range share and population stability index.

The last requests' statistics are counted into the bins that the build wrote down. The population
stability index is Σ (p − q) · ln(p / q) over the bins: by custom below 0.1 nothing has changed, above 0.25 much has.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.evaluate.drift import BINS, input_statistics, output_statistics, shares_of, spread_elements
from compiler.target import Array, Arrays
from serving.metrics import Metrics

WINDOW = 500
"""Requests that are compared: a share of 1 % is five of them."""

LEAST = 200
"""Requests before anything is said: chance alone gives (bins − 1) · (1 / samples + 1 / requests)."""

LEAST_SHARE = 1e-3
"""What an empty bin counts as: the index of a bin that nobody was in before would be infinite."""

MOVED = 0.25
"""Index beyond which a distribution has changed, by custom."""

CHANCE = 1e-5
"""How often a window of requests like the calibration data may be called changed."""

TOGETHER = 32
"""Requests whose figures are computed together: of a small array NumPy's calls cost more than the arithmetic."""

Figures = NDArray[np.float64]


def least_shift(samples: int) -> float:
    """The index from which a distribution counts as changed: by custom, or more where chance alone gives more.

    Without a change the index is about (1 / samples + 1 / requests) times a chi-squared variable with one degree of
    freedom less than there are bins (Yurdakul and Naranjo, "Statistical Properties of the Population Stability Index",
    Journal of Risk Model Validation, 2020). Its quantile is approximated as Wilson and Hilferty do.

    Args:
        samples: Of the calibration data; 0 where there are none.
    """
    if not samples:
        return MOVED
    freedom = BINS - 1
    spread = 2.0 / (9.0 * freedom)
    quantile = freedom * (1.0 - spread + NormalDist().inv_cdf(1.0 - CHANCE) * math.sqrt(spread)) ** 3
    return max(MOVED, quantile * (1.0 / samples + 1.0 / WINDOW))


def stability_index(expected: Figures, actual: Figures) -> float:
    """Population stability index of two sets of shares over the same bins."""
    p, q = np.maximum(actual, LEAST_SHARE), np.maximum(expected, LEAST_SHARE)
    return float(np.sum((p - q) * np.log(p / q)))


@dataclass
class _Tensor:
    """What the last requests had of one tensor."""

    facts: Any
    is_input: bool
    values: dict[str, deque[float]] = field(default_factory=dict)
    outside: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    waiting: list[Array] = field(default_factory=list)

    def see(self, samples: Array) -> None:
        """Notes samples; they are counted once there are many, or somebody asks."""
        # a copy: the request's own array would keep its whole body
        seen = spread_elements(samples).copy() if self.is_input else samples.reshape(len(samples), -1)
        if self.waiting and self.waiting[0].shape[1] != seen.shape[1]:  # of a model whose sizes vary
            self.count()
        self.waiting.append(seen)
        if len(self.waiting) >= TOGETHER:
            self.count()

    def count(self) -> None:
        """Counts the samples that wait."""
        if not self.waiting:
            return
        samples = np.concatenate(self.waiting)
        self.waiting.clear()
        statistics = input_statistics(samples) if self.is_input else output_statistics(samples)
        for name, figures in statistics.items():
            self.values.setdefault(name, deque(maxlen=WINDOW)).extend(figures.tolist())
        if self.is_input:
            is_outside = (samples < self.facts.minimum) | (samples > self.facts.maximum)
            self.outside.extend(is_outside.mean(axis=1).tolist())

    def shifts(self) -> dict[str, float]:
        """Statistic → index; none where too few requests came."""
        self.count()
        found = {}
        for name, histogram in self.facts.histograms.items():
            values = self.values.get(name, ())
            if len(values) >= LEAST:
                shares = shares_of(np.array(values), np.array(histogram.edges))
                found[name] = stability_index(np.array(histogram.shares), shares)
        return found


class DriftMonitor:
    """Compares requests with what the build wrote down of its calibration data.

    Args:
        figures: The manifest's; None where there is none, and nothing is compared.
    """

    def __init__(self, figures: Any) -> None:
        sides = ((figures.inputs, True), (figures.outputs, False)) if figures else ()
        self._tensors = {
            (name, is_input): _Tensor(facts, is_input) for tensors, is_input in sides for name, facts in tensors.items()
        }

    def see(self, inputs: Arrays, outputs: Arrays, size: int) -> None:
        """Notes a request that was answered."""
        for (name, is_input), tensor in self._tensors.items():
            array = (inputs if is_input else outputs).get(name)
            if array is not None and array.ndim and len(array) == size:
                tensor.see(array)

    def shifts(self) -> dict[tuple[str, bool], dict[str, float]]:
        """Tensor's name, and whether it is an input → statistic → index."""
        return {key: tensor.shifts() for key, tensor in self._tensors.items()}

    def tell(self, model: str, metrics: Metrics) -> None:
        """Writes what is known as metrics."""
        for (name, is_input), tensor in self._tensors.items():
            family = metrics.input_shift if is_input else metrics.output_shift
            for statistic, index in tensor.shifts().items():
                family.labels(model, name, statistic).set(index)
            if is_input and len(tensor.outside) >= LEAST:
                metrics.out_of_range.labels(model, name).set(sum(tensor.outside) / len(tensor.outside))
