"""Classification: is the right class the most probable one (top-1), or among the five (top-5)?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from compiler.evaluate.bootstrap import Decisions, Measured, Values, Weights
from compiler.evaluate.dataset import Dataset
from compiler.evaluate.task import matched, pick_output
from compiler.model.numerics import Array, Arrays

# of ILSVRC, whose papers report top-1 and top-5
TOP = 5
# a list of names; a data file named by mistake must not be read whole
MAX_CLASSES_BYTES = 1 << 24


def measure(
    outputs: Arrays, labels: Array | None, reference: Arrays | None, *, output: str | None, classes: Sequence[str]
) -> Measured:
    """Top-1; top-5 is a detail. Where classes tie, the first of them counts as more probable."""
    scores = pick_output(outputs, output)
    wanted = class_numbers(matched(labels, len(scores)), scores.shape[1], classes)
    own = scores[np.arange(len(scores)), wanted]
    before = np.arange(scores.shape[1]) < wanted[:, None]
    rank = ((scores > own[:, None]) | ((scores == own[:, None]) & before)).sum(axis=1)
    hits = (rank == 0).astype(np.float64)
    return Measured(
        value_pct=100 * float(hits.mean()),
        details={f"top-{TOP}": 100 * float((rank < TOP).mean())} if scores.shape[1] > TOP else {},
        count=len(scores),
        units=len(scores),
        resample=partial(mean_of, 100 * hits),
        decisions=Decisions(100 * hits, np.arange(len(hits))),
    )


def mean_of(values: NDArray[np.float64], weights: Weights) -> Values:
    """The mean of values (units,) in each resample (resamples, units)."""
    mean: Values = weights @ values / weights.sum(axis=1)
    return mean


def check(dataset: Dataset, *, classes: Sequence[str]) -> tuple[str, ...]:
    """What is odd about the labels; raises DataError where they show fewer than two classes."""
    labels = matched(dataset.labels, dataset.count)
    if labels.ndim != 1:
        raise DataError("a file of pairs is no labelled data for classification", where=dataset.origin)
    known = np.unique(labels)
    if len(known) < 2:
        what = f"every sample shows one class, '{known[0]}'"
        raise DataError(what, where=dataset.origin, remedy="A metric of one class says nothing; add others.")
    if classes and (strange := [str(name) for name in known if str(name) not in classes]):
        what = f"{len(strange)} labels are not in `classes`: {', '.join(strange[:5])}"
        raise DataError(what, where=dataset.origin)
    return ()


def class_numbers(labels: Array, count: int, classes: Sequence[str]) -> NDArray[np.int64]:
    """The model's output for each label.

    Args:
        labels: Numbers of outputs, as integers or written out, or names.
        count: How many outputs the model has.
        classes: Names in the order of the outputs; empty where labels are numbers, or every class is among them.

    Raises:
        DataError: Labels do not match the model's outputs.
    """
    if labels.dtype.kind in "iu":
        numbers = labels.astype(np.int64)
    elif classes:
        numbers = _positions(labels, classes)
    elif all(str(name).isdecimal() for name in np.unique(labels)):
        numbers = labels.astype(np.int64)
    else:
        numbers = _in_order_of_names(labels, count)
    if numbers.min() < 0 or numbers.max() >= count:
        what = f"labels go from {numbers.min()} to {numbers.max()}, the model has outputs 0 to {count - 1}"
        raise DataError(what, where="evaluation", remedy="Number the classes as the model's outputs.")
    return numbers


def _positions(labels: Array, classes: Sequence[str]) -> NDArray[np.int64]:
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[str(name)] for name in labels], np.int64)


def _in_order_of_names(labels: Array, count: int) -> NDArray[np.int64]:
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) != count:
        what = f"there are {len(names)} classes by name, and the model has {count} outputs"
        remedy = "State `evaluation: {classes: FILE}` with every name in the order of the outputs, one a line."
        raise DataError(what, where="evaluation", remedy=remedy)
    return numbers.astype(np.int64)


def read_classes(path: Path | None) -> tuple[str, ...]:
    """The names in a text file, one a line; none without a file.

    Raises:
        DataError: It cannot be read, or repeats a name.
    """
    if path is None:
        return ()
    try:
        if path.stat().st_size > MAX_CLASSES_BYTES:
            raise DataError(f"the file has more than {MAX_CLASSES_BYTES} bytes", where=str(path))
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the classes cannot be read: {error}", where=str(path)) from error
    if len(set(names)) < len(names) or not names:
        raise DataError("names repeat" if names else "the file holds no names", where=str(path))
    return tuple(names)
