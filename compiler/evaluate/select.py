"""Which samples are used where fewer are asked for than there are: taken evenly, people and classes kept whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from compiler.model.numerics import Array

Indices = NDArray[np.int64]

_TOGETHER = 2
"""Samples of one label that are taken together: the least that make a genuine pair."""


def select(total: int, labels: Array | None, count: int | None, *, where: str | Path) -> Indices:
    """Ascending indices of the samples to use.

    Args:
        total: How many there are, ≥ 1.
        labels: What each shows; then samples of one label are taken two at a time, so that pairs stay.
        count: How many to use; all if None.
        where: What the samples are from, for messages.

    Raises:
        DataError: More are asked for than there are.
    """
    everything = np.arange(total, dtype=np.int64)
    if count is None or count == total:
        return everything
    if count > total:
        remedy = f"Write `samples: {total}`, or add samples."
        raise DataError(f"{count} samples are asked for, there are {total}", where=str(where), remedy=remedy)
    if labels is None:
        return _evenly(everything, count)
    return np.sort(_in_turns(labels)[:count])


def _in_turns(labels: Array) -> Indices:
    """Indices ordered so that any first part takes few samples of many labels, and these spread over all labels."""
    _, label = np.unique(labels, return_inverse=True)
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(label.max() + 1))
    rank = np.empty(len(label), np.int64)
    rank[order] = np.arange(len(label)) - starts[label[order]]
    spread = np.argsort(_evenly_first(int(label.max()) + 1))[label]
    return np.lexsort((rank, spread, rank // _TOGETHER)).astype(np.int64)


def _evenly_first(count: int) -> Indices:
    """0..count−1 ordered so that any first part is spread over all: by their bits, read backwards."""
    width = max(1, (count - 1).bit_length())
    reverse = np.array([int(f"{number:0{width}b}"[::-1], 2) for number in range(1 << width)], np.int64)
    return reverse[reverse < count]


def _evenly(items: Indices, count: int) -> Indices:
    return items[np.linspace(0, len(items) - 1, count).round().astype(np.int64)]
