"""Samples of any number, read in the background, in an order that never changes, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from compiler.errors import CompilerError, DataError, combine
from compiler.evaluate.judged import OutputPart
from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec

Step = Callable[[], Arrays]
"""Reads some samples: input name → array whose first axis counts them. Raises DataError for one that is unusable."""

MAX_PROBLEMS = 50
"""Problems of single samples that are listed; a set with more is of another kind, and the list is no help."""

_THREADS_MAX = 8
"""Threads that read samples: more of them wait for the disk and for each other."""

_AHEAD = 32
"""Steps that may wait beyond the batch being made: enough to hide one slow picture."""


@dataclass(frozen=True)
class Dataset:
    """Samples for a model.

    Args:
        count: How many there are.
        origin: Where they are from, in words that label every figure measured with them.
        digest: SHA-256 (64 hex digits) of content, labels, and how content becomes inputs.
        inputs: What they are for.
        steps: Begins to read them, from the first, each time it is called.
        labels: What they show, one per sample (numbers or names); for pairs (M, 5) integers: first and second sample,
            whether they show the same person (1 or 0), and the person of each. None where there are none.
        warnings: What is odd about them and no error.
        in_order: Whether steps must run one after another.
        whole: Whether inputs are complete as they stand, without an axis that counts samples.
        judged: What is kept of the outputs; None keeps all.
    """

    count: int
    origin: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    steps: Callable[[], Iterable[Step]] = field(repr=False, compare=False)
    labels: Array | None = field(default=None, repr=False, compare=False)
    warnings: tuple[str, ...] = ()
    in_order: bool = True
    whole: bool = False
    judged: OutputPart | None = None

    def batches(self, size: int) -> Iterator[Arrays]:
        """Input name → `size` samples, read while the caller works on earlier ones.

        Args:
            size: Samples in a batch, ≥ 1; the last one, and one before samples of another shape, may be shorter. One
                where samples are complete inputs.

        Raises:
            DataError: Samples cannot be used; all of them are named, when the last has been read.
        """
        # a user's generator can be read in its own order only
        workers = 1 if self.in_order else min(_THREADS_MAX, available_cpus())
        # a batch more where steps are single samples: else the next batch would begin only when this one is done
        ahead = _AHEAD + workers + (0 if self.in_order else size)
        good = _usable(run_ahead(map(_guarded, self.steps()), workers=workers, ahead=ahead))
        return (chunk for chunk in good) if self.whole else _regrouped(good, size)

    def full_batches(self, size: int) -> Iterator[Arrays]:
        """Batches that a model of these inputs can be run on: of the size that they fix, else of at most `size`.

        A batch with too few samples for a fixed size has some of them twice, from its first on.
        """
        fixed = None if self.whole else self.fixed_batch
        for batch in self.batches(fixed or size):
            yield batch if fixed is None else {name: _filled(array, fixed) for name, array in batch.items()}

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the inputs fix; None where they leave it open."""
        sizes = [spec.shape[0] for spec in self.inputs if spec.shape]
        return next((size for size in sizes if isinstance(size, int)), None)


def _filled(array: Array, size: int) -> Array:
    return array if len(array) == size else np.resize(array, (size, *array.shape[1:]))


def _guarded(step: Step) -> Callable[[], Arrays | CompilerError]:
    def run() -> Arrays | CompilerError:
        try:
            return _finite(step())
        except CompilerError as error:
            return error

    return run


def _finite(sample: Arrays) -> Arrays:
    for name, array in sample.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).sum()) if array.ndim else 1
            raise DataError(f"{bad} of {len(array) if array.ndim else 1} samples read hold NaN or infinity", where=name)
    return sample


def _usable(results: Iterator[Arrays | CompilerError]) -> Iterator[Arrays]:
    """The samples up to the first that is unusable; then the rest is only read to name every problem."""
    problems: list[CompilerError] = []
    more = 0
    for result in results:
        if isinstance(result, CompilerError):
            if len(problems) < MAX_PROBLEMS:
                problems.append(result)
            else:
                more += 1
        elif not problems:
            yield result
    if more:
        problems.append(DataError(f"and {more} more samples that cannot be used"))
    if problems:
        raise combine(problems)


def _regrouped(chunks: Iterator[Arrays], size: int) -> Iterator[Arrays]:
    """Chunks of any length as batches of `size`."""
    held: list[Arrays] = []
    rows = 0
    for chunk in chunks:
        if not _length(chunk):  # a part of a data set may keep none of a step's samples
            continue
        # samples of another size cannot be stacked: the batch so far goes out shorter
        if held and _shapes(held[0]) != _shapes(chunk):
            yield from _cut(held, rows)
            held, rows = [], 0
        held.append(chunk)
        rows += _length(chunk)
        if rows >= size:
            *batches, rest = _cut(held, size, keep=True)
            yield from batches
            held, rows = ([rest], _length(rest)) if _length(rest) else ([], 0)
    if held:
        yield from _cut(held, rows)


def _cut(held: list[Arrays], size: int, *, keep: bool = False) -> Iterator[Arrays]:
    """What is held in pieces of `size` samples; with `keep`, the last piece is what is left, which may be empty."""
    joined = {
        name: np.concatenate([chunk[name] for chunk in held]) if len(held) > 1 else held[0][name] for name in held[0]
    }
    rows = _length(joined)
    end = rows - rows % size if keep else rows
    for start in range(0, end, size):
        yield {name: array[start : start + size] for name, array in joined.items()}
    if keep:
        yield {name: array[end:] for name, array in joined.items()}


def _length(chunk: Arrays) -> int:
    return len(next(iter(chunk.values())))


def _shapes(chunk: Arrays) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in chunk.values()]
