"""What a build's accuracy is judged by: a metric, its interval, and its drop against the float model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.schema import AccuracyDrop, Score, Threshold
from compiler.errors import DataError, InvalidModel
from compiler.evaluate.bootstrap import Measured, interval, resampled
from compiler.evaluate.dataset import Dataset
from compiler.fleet.data import Rule
from compiler.model.numerics import Array, Arrays

VERIFICATION = "verification"

Measure: TypeAlias = Callable[[Arrays, "Array | None", "Arrays | None"], Measured]


@dataclass(frozen=True)
class MeasuredDrop(AccuracyDrop):
    """A drop that can be computed again on parts of its set.

    Args:
        measured: The metric of the reference and of the candidate; None where the candidate scored 0.
    """

    measured: tuple[Measured, Measured] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Task:
    """A metric and its data's needs.

    Args:
        name: `verification`, `classification`, `embedding`, or `module:function`.
        metric: The metric that limits hold for.
        measure: Outputs, labels and the float model's outputs → the metric.
        check: Raises DataError where a dataset cannot be scored; returns what is odd about it.
        rule: The rule asked for.
        threshold: Outputs and labels → what accepts a pair; None for a task that knows no pairs.
    """

    name: str
    metric: str
    measure: Measure = field(repr=False)
    check: Callable[[Dataset], tuple[str, ...]] = field(repr=False)
    rule: Rule = "auto"
    threshold: Callable[[Arrays, Array | None], Threshold] | None = field(default=None, repr=False)

    def score(self, outputs: Arrays, labels: Array | None, *, reference: Arrays | None = None) -> Score:
        """The metric of one model.

        Args:
            outputs: Output name → (samples, …), as `run_dataset` gives them.
            labels: The dataset's.
            reference: The float model's outputs on the same samples; `embedding` needs them.

        Raises:
            InvalidModel: Outputs hold NaN or infinity.
            DataError: Labels do not match the outputs, or a function of the user's own fails.
        """
        measured = self._measured(outputs, labels, reference)
        return self._score(measured, *interval(resampled([measured])[0]))

    def drop(
        self, reference: Arrays, candidate: Arrays, labels: Array | None, *, limit_pct: float | None = None
    ) -> AccuracyDrop:
        """How much worse the candidate is; one whose outputs are not finite scores 0.

        Args:
            reference: The float model's outputs.
            candidate: The candidate's, on the same samples.
            labels: The dataset's.
            limit_pct: The limit it will be judged by, in percentage points.

        Raises:
            InvalidModel: The reference's outputs hold NaN or infinity.
            DataError: As `score`.
        """
        before = self._measured(reference, labels, reference)
        try:
            after = self._measured(candidate, labels, reference)
        except InvalidModel as error:
            return self._failed(before, error)
        was, now = resampled([before, after])
        drop, (low, high) = before.value_pct - after.value_pct, interval(was - now)
        rule, why = choose_rule(self.rule, before.count, limit_pct, high)
        scores = self._score(before, *interval(was)), self._score(after, *interval(now))
        judged = drop if rule == "point" else high
        return MeasuredDrop(
            self.metric, *scores, drop, known_end(low), known_end(high), rule, judged, why, measured=(before, after)
        )

    @property
    def by_person(self) -> bool:
        """Whether its decisions are pairs of one person, and people are drawn."""
        return self.name == VERIFICATION

    def _measured(self, outputs: Arrays, labels: Array | None, reference: Arrays | None) -> Measured:
        refuse_not_finite(outputs)
        return self.measure(outputs, labels, reference)

    def _score(self, measured: Measured, low: float, high: float) -> Score:
        return Score(self.metric, measured.value_pct, known_end(low), known_end(high), measured.count, measured.details)

    def _failed(self, before: Measured, error: InvalidModel) -> AccuracyDrop:
        reference = self._score(before, *interval(resampled([before])[0]))
        nothing = Score(self.metric, 0.0, 0.0, 0.0, before.count, {})
        drop = before.value_pct
        return AccuracyDrop(self.metric, reference, nothing, drop, drop, drop, "point", drop, f"scored 0: {error.what}")


def known_end(end: float) -> float | None:
    """The end of an interval; None where the interval does not exist."""
    return None if math.isnan(end) else end


def choose_rule(
    asked: Rule, count: int, limit_pct: float | None, high_pct: float
) -> tuple[Literal["point", "bound"], str]:
    """The rule a drop is judged by, and why.

    Args:
        asked: The fleet file's.
        count: Decisions in the set.
        limit_pct: The limit, in percentage points.
        high_pct: Upper end of the drop's interval; NaN where there is none.

    Raises:
        DataError: The fleet file asks for the bound, and the drop has no interval.
    """
    weight = f"one of {count} decisions weighs {100 / count:.3g} points"
    if asked == "bound" and math.isnan(high_pct):
        raise DataError(
            f"the limit is to be judged by the bound of the drop, which has no interval; {weight}",
            where="evaluation: rule",
            remedy="Give samples of more people or classes, or judge by `rule: point`.",
        )
    if asked != "auto":
        return asked, f"the fleet file asks for the {asked}; {weight}"
    if limit_pct is None:
        return "point", f"there is no limit; {weight}"
    if 100 / count <= limit_pct / 2:
        return "point", f"{weight}, no more than half of the limit of {limit_pct:g}"
    if math.isnan(high_pct):
        return "point", f"{weight}, more than half of the limit of {limit_pct:g}, but the drop has no interval"
    return "bound", f"{weight}, more than half of the limit of {limit_pct:g}"


def refuse_not_finite(outputs: Arrays) -> None:
    """Raises InvalidModel where an output holds NaN or infinity, naming the samples."""
    for name, array in outputs.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        what = f"output '{name}' holds NaN or infinity for {len(bad)} of {len(array)} samples: {shown}"
        raise InvalidModel(
            what, where="evaluation", remedy="Check the model, and that `preprocess` is the model's own."
        )


def pick_output(outputs: Arrays, name: str | None) -> NDArray[np.float32]:
    """The output that is judged, as one vector per sample (samples, features).

    Raises:
        DataError: There is no such output, several and none is named, or it has no axis of samples.
    """
    known = ", ".join(outputs)
    if name is None and len(outputs) > 1:
        raise DataError(f"the model has several outputs: {known}", remedy="Name one: `evaluation: {output: …}`.")
    chosen = name if name is not None else next(iter(outputs), "")
    if chosen not in outputs:
        raise DataError(f"the model has no output '{chosen}'; it has {known}", where="evaluation.output")
    array = outputs[chosen]
    if array.ndim < 2 or not array.size:
        raise DataError(f"output '{chosen}' of shape {array.shape} is no vector per sample", where="evaluation.output")
    return array.reshape(len(array), -1).astype(np.float32, copy=False)


def matched(labels: Array | None, count: int) -> Array:
    """The labels of `count` samples; raises DataError where there are none, or another number."""
    if labels is None:
        raise DataError("the data have no labels", where="evaluation", remedy="Use `task: embedding`, or add labels.")
    if labels.ndim == 1 and len(labels) != count:
        raise DataError(f"there are {len(labels)} labels for {count} samples", where="evaluation")
    return labels
