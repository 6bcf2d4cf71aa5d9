"""Metrics of the user's own: `module:function`, called with outputs and labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from compiler.errors import DataError
from compiler.evaluate.bootstrap import Decisions, Measured, Values, Weights
from compiler.evaluate.classification import mean_of
from compiler.evaluate.function import call, takes
from compiler.model.numerics import Array, Arrays

RESAMPLES = 200
"""Resamples of a function that returns one number: each is a call of it."""


def measure(
    outputs: Arrays, labels: Array | None, reference: Arrays | None, *, function: Callable[..., Any], spec: str
) -> Measured:
    """The function's value.

    It is called as `function(outputs, labels)`, with `reference=` too if it takes one: mappings of output name to array
    (samples, …), labels as they are in the data or None. It returns the metric in percent, more being better: one
    number, or one per sample, whose mean is the metric and which cost nothing to resample.

    Raises:
        DataError: It raises, or returns no finite number.
    """
    count = len(next(iter(outputs.values())))
    options = {"reference": reference} if takes(function, "reference") else {}
    value = _numbers(call(function, spec, outputs, labels, **options), count, spec)
    if value.ndim:
        decisions = Decisions(value, np.arange(count))
        return Measured(float(value.mean()), {}, count, count, partial(mean_of, value), decisions=decisions)
    again = partial(_resample, outputs, labels, reference, function, spec)
    return Measured(float(value), {}, count, count, again, resamples=RESAMPLES)


def _numbers(returned: object, count: int, spec: str) -> Values:
    try:
        values = np.asarray(returned, np.float64)
    except (TypeError, ValueError) as error:
        raise _no_number(returned, spec) from error
    if values.shape not in ((), (count,)) or not np.isfinite(values).all():
        raise _no_number(returned, spec)
    return values


def _no_number(returned: object, spec: str) -> DataError:
    what = f"the function returned {str(returned)[:100]!r}, which is no finite number"
    return DataError(what, where=spec, remedy="Return the metric in percent: one number, or one per sample.")


def _resample(
    outputs: Arrays,
    labels: Array | None,
    reference: Arrays | None,
    function: Callable[..., Any],
    spec: str,
    weights: Weights,
) -> Values:
    """The function's value on each resample; NaN where it has none, and for pairs, which cannot be drawn this way."""
    if labels is not None and labels.ndim != 1:
        return np.full(len(weights), np.nan)
    values = []
    for row in weights:
        index = np.repeat(np.arange(len(row)), row.astype(np.int64))
        chosen = {name: array[index] for name, array in outputs.items()}
        again = None if labels is None else labels[index]
        others = None if reference is None else {name: array[index] for name, array in reference.items()}
        options = {"reference": others} if takes(function, "reference") else {}
        try:
            values.append(float(_numbers(call(function, spec, chosen, again, **options), len(index), spec)))
        except DataError:
            values.append(float("nan"))
    return np.array(values)
