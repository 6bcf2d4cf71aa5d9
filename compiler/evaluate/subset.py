"""Samples told apart by their content: what two data sets share, and a set divided into two without a common sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from compiler.evaluate.dataset import Dataset, Step
from compiler.model.numerics import Arrays

_READ = 32
"""Samples that are in memory while digests are made."""

_SEED = b"fleetc halves 1"

Mask = NDArray[np.bool_]


def sample_digests(dataset: Dataset) -> list[bytes]:
    """The SHA-256 of every sample as the model gets it, in order; raises DataError as `Dataset.batches`."""
    return [digest for batch in dataset.batches(_READ) for digest in _digests(batch, dataset.whole)]


def halves(dataset: Dataset, digests: Sequence[bytes]) -> tuple[Dataset, Dataset]:
    """Two parts without a common sample, in the order of their digests, so that neither owes anything to their places.

    Args:
        dataset: Samples with an axis that counts them.
        digests: Those of its samples.
    """
    distinct = sorted(set(digests), key=lambda digest: hashlib.sha256(_SEED + digest).digest())
    first = set(distinct[: (len(distinct) + 1) // 2])
    is_first = np.array([digest in first for digest in digests], np.bool_)
    return _part(dataset, is_first, "the half that fits"), _part(dataset, ~is_first, "the half that judges")


def _digests(batch: Arrays, whole: bool) -> Iterator[bytes]:
    rows = [batch] if whole else [{name: array[row] for name, array in batch.items()} for row in range(_rows(batch))]
    for sample in rows:
        digest = hashlib.sha256()
        for name in sorted(sample):
            array = np.ascontiguousarray(sample[name])
            digest.update(f"{name} {array.dtype} {array.shape}\0".encode() + array.tobytes())
        yield digest.digest()


def _part(dataset: Dataset, rows: Mask, name: str) -> Dataset:
    return replace(
        dataset,
        count=int(rows.sum()),
        origin=f"{dataset.origin}, {name}",
        digest=hashlib.sha256(f"{dataset.digest} {name}".encode() + rows.tobytes()).hexdigest(),
        steps=partial(_steps, dataset, rows),
        labels=None if dataset.labels is None else dataset.labels[rows],
        in_order=True,
    )


def _steps(dataset: Dataset, mask: Mask) -> Iterator[Step]:
    """The same steps, each of which hands on only the rows that are kept; how many it has shows when it is read."""
    position = [0]

    def read(step: Step) -> Arrays:
        rows = step()
        start, position[0] = position[0], position[0] + _rows(rows)
        return {name: array[mask[start : position[0]]] for name, array in rows.items()}

    return (partial(read, step) for step in dataset.steps())


def _rows(batch: Arrays) -> int:
    return len(next(iter(batch.values())))
