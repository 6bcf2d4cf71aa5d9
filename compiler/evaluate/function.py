"""Functions of the user's own: found by `module:function`, and samples that one gives."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, DataError, combine
from compiler.evaluate.dataset import MAX_PROBLEMS, Dataset, Step
from compiler.evaluate.samples import misfit
from compiler.model.numerics import Array, arrays_digest
from compiler.model.spec import TensorSpec


def find_function(spec: str, folder: Path) -> Callable[..., Any]:
    """The function `module:function`; the folder is searched before installed packages. Importing runs the module.

    Raises:
        DataError: The module cannot be imported, or has no such function.
    """
    module_name, _, name = spec.partition(":")
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        remedy = f"The module is looked for in {folder} and among the installed packages."
        raise DataError(f"it cannot be imported: {_said(error)}", where=spec, remedy=remedy) from error
    finally:
        sys.path.remove(str(folder))
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"module '{module_name}' has no function '{name}'", where=spec)
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], spec: str, *arguments: object, **options: object) -> Any:
    """What the user's function returns; raises DataError naming it where it raises."""
    try:
        return function(*arguments, **options)
    except Exception as error:  # whatever the user's function raises
        raise DataError(f"the function raised {_said(error)}", where=spec) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def open_function(
    spec: str, folder: Path, inputs: Sequence[TensorSpec], *, labelled: bool | None, count: int | None
) -> Dataset:
    """Samples from a function of the user's own, which is called anew each time they are read.

    The function takes nothing and returns an iterable of samples, or of (sample, label). A sample is a mapping of input
    name to array, or for a model of one input the array; shaped as one sample with or without a batch axis of 1.

    Args:
        spec: `module:function`.
        folder: Where the module is looked for first.
        inputs: What the model takes.
        labelled: Whether labels are needed; None takes them where there are any.
        count: Use the first so many; all if None.

    Raises:
        DataError: The function fails, gives nothing, or gives samples that do not fit; every problem is listed.
    """
    function = find_function(spec, folder)
    problems: list[CompilerError] = []
    labels: list[object] = []
    digest, total = hashlib.sha256(b"function\0"), 0
    for sample, label in _samples(function, spec, inputs, count, problems):
        digest.update(arrays_digest(sample).encode() + repr(label).encode(errors="surrogateescape"))
        labels.append(label)
        total += 1
    if not problems and (error := _shortage(spec, total, count)):
        problems.append(error)
    if labelled is None:
        labelled = all(label is not None for label in labels)
    if not problems and labelled and any(label is None for label in labels):
        what = "it gives samples without labels"
        problems.append(DataError(what, where=spec, remedy="Give (sample, label)."))
    if problems:
        raise combine(problems[:MAX_PROBLEMS])
    return Dataset(
        count=total,
        origin=spec,
        digest=digest.hexdigest(),
        inputs=tuple(inputs),
        steps=partial(_steps, function, spec, tuple(inputs), total),
        labels=np.array(labels) if labelled else None,
    )


def _shortage(spec: str, total: int, count: int | None) -> CompilerError | None:
    if not total:
        return DataError("it gives no samples", where=spec)
    if count is not None and total < count:
        what = f"{count} samples are asked for, it gives {total}"
        return DataError(what, where=spec, remedy=f"Write `samples: {total}`.")
    return None


def _samples(
    function: Callable[..., Any],
    spec: str,
    inputs: Sequence[TensorSpec],
    count: int | None,
    problems: list[CompilerError],
) -> Iterator[tuple[dict[str, Array], object]]:
    """Samples with their labels; what is wrong with one is added to the problems, and it is left out."""
    given = call(function, spec)
    if not isinstance(given, Iterable):
        raise DataError(f"it returns {type(given).__name__}, which cannot be iterated over", where=spec)
    iterator = islice(iter(given), count)
    number = 0
    while len(problems) < MAX_PROBLEMS:
        item = call(partial(next, iterator, None), spec)
        if item is None:
            return
        number += 1
        try:
            yield _sample(item, inputs, where=f"{spec}, sample {number}")
        except DataError as error:
            problems.append(error)


def _sample(item: object, inputs: Sequence[TensorSpec], *, where: str) -> tuple[dict[str, Array], object]:
    sample, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(sample, Mapping):
        sample = {inputs[0].name: sample} if len(inputs) == 1 else {}
    if missing := [spec.name for spec in inputs if spec.name not in sample]:
        raise DataError(f"there is no array for {', '.join(map(repr, missing))}", where=where)
    arrays = {spec.name: np.asarray(sample[spec.name]) for spec in inputs}
    rows = {
        name: array[None] if array.ndim < len(spec.shape) else array for (name, array), spec in _each(arrays, inputs)
    }
    for (name, array), spec in _each(rows, inputs):
        if problem := misfit(spec, array.dtype, array.shape, where=f"{where}, input '{name}'"):
            raise problem
        if len(array) != 1:
            raise DataError(
                f"shape {array.shape} holds {len(array)} samples, not one", where=f"{where}, input '{name}'"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError("it holds NaN or infinity", where=f"{where}, input '{name}'")
    return rows, label.item() if isinstance(label, np.generic) else label


def _each(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> Iterator[tuple[tuple[str, Array], TensorSpec]]:
    return zip(arrays.items(), inputs, strict=True)


def _steps(function: Callable[..., Any], spec: str, inputs: tuple[TensorSpec, ...], count: int) -> Iterator[Step]:
    problems: list[CompilerError] = []
    samples = _samples(function, spec, inputs, count, problems)

    def step() -> dict[str, Array]:
        found = next(samples, None)
        if found is None:
            raise combine(problems or [DataError("it gives fewer samples the second time", where=spec)])
        return found[0]

    for _ in range(count):
        yield step


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
