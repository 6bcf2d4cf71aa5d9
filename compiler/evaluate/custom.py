"""Metrics of the user's own: `module:function`, called with outputs and labels in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from compiler.errors import DataError
from compiler.evaluate.bootstrap import Decisions, Measured, Values, Weights
from compiler.evaluate.classification import mean_of
from compiler.evaluate.function import LIMITS, ask
from compiler.model.numerics import Array, Arrays
from compiler.model.process import ChildLimits

RESAMPLES = 200
"""Resamples of a function that returns one number: each is a call of it."""


def measure(
    outputs: Arrays,
    labels: Array | None,
    reference: Arrays | None,
    *,
    spec: str,
    folder: Path,
    child_limits: ChildLimits = LIMITS,
) -> Measured:
    """The function's value.

    It is called as `function(outputs, labels)`, with `reference=` too if it takes one: mappings of output name to array
    (samples, …), labels as they are in the data or None. It returns the metric in percent, more being better: one
    number, or one per sample, whose mean is the metric and which cost nothing to resample.

    Raises:
        DataError: It raises, returns no finite number, crashes, hangs, or uses too much memory.
    """
    count = len(next(iter(outputs.values())))
    files = _files(outputs, labels, reference)
    value = _numbers("metric", "value", spec, folder, child_limits, files)
    if value.shape not in ((), (count,)):
        raise _unreadable(spec)
    if value.ndim:
        decisions = Decisions(value, np.arange(count))
        return Measured(float(value.mean()), {}, count, count, partial(mean_of, value), decisions=decisions)
    # pairs are no samples, and cannot be drawn this way
    has_pairs = labels is not None and labels.ndim != 1
    again = _no_values if has_pairs else partial(_resample, spec, folder, child_limits, files)
    return Measured(float(value), {}, count, count, again, resamples=RESAMPLES)


def _files(outputs: Arrays, labels: Array | None, reference: Arrays | None) -> dict[str, Arrays]:
    files: dict[str, Arrays] = {"outputs": outputs}
    if labels is not None:
        files["labels"] = {"labels": labels}
    if reference is not None:
        files["reference"] = reference
    return files


def _numbers(
    work: str, name: str, spec: str, folder: Path, child_limits: ChildLimits, files: Mapping[str, Arrays]
) -> Values:
    """The one array that a work gives."""
    frames = list(ask(work, spec, folder, child_limits=child_limits, files=files))
    if len(frames) != 1 or name not in frames[0][1] or frames[0][1][name].dtype != np.float64:
        raise _unreadable(spec)
    return np.asarray(frames[0][1][name], np.float64)


def _resample(
    spec: str, folder: Path, child_limits: ChildLimits, files: Mapping[str, Arrays], weights: Weights
) -> Values:
    """The function's value on each resample, all of them in one child process; NaN where it has none."""
    values = _numbers("resample", "values", spec, folder, child_limits, {**files, "weights": {"weights": weights}})
    if values.shape != (len(weights),):
        raise _unreadable(spec)
    return values


def _no_values(weights: Weights) -> Values:
    return np.full(len(weights), np.nan)


def _unreadable(spec: str) -> DataError:
    return DataError("what the function's process sent is no metric", where=spec)
