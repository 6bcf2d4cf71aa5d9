"""The order of removal by redundancy against the textbook's: one channel after the other, everything computed anew."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.compress.prune.redundancy import Reader, order_by_redundancy, shrunk
from compiler.compress.prune.rows import Matrix


def reader_of(rng: np.random.Generator, sizes: dict[int, int], *, fixed: int = 0, outputs: int = 5) -> Reader:
    """A layer whose rows are those of some channels, of given sizes and in any order, and some of no channel."""
    width = sum(sizes.values()) + fixed
    mixing = rng.normal(size=(width, width)) / np.sqrt(width) + np.eye(width)
    first, second = (np.maximum(rng.normal(size=(3 * width, width)) @ mixing, 0.0) for _ in range(2))
    places = rng.permutation(width).tolist()
    blocks = {channel: [places.pop() for _ in range(size)] for channel, size in sizes.items()}
    weights = rng.normal(size=(width, outputs)) * rng.uniform(0.1, 1.0, size=(width, 1))
    return Reader(weights, (first.T @ first, second.T @ second), 6 * width, blocks, float(rng.uniform(1.0, 9.0)))


def cost(reader: Reader, weights: Matrix, kept: list[int], block: list[int]) -> float:
    """By how much the least squares on what is kept errs more without a block: tr(W_Sᵀ·(H⁻¹_SS)⁻¹·W_S)."""
    places = [kept.index(row) for row in block]
    moments = shrunk(reader.halves[0] + reader.halves[1], reader.rows)[np.ix_(kept, kept)]
    inner = np.linalg.inv(moments)[np.ix_(places, places)]
    return float((weights[block] * np.linalg.solve(inner, weights[block])).sum()) / reader.energy


def refit(reader: Reader, moments: Matrix, kept: list[int]) -> Matrix:
    """Weights that, on the inputs that are kept alone, are nearest to the layer's outputs."""
    fitted = np.zeros_like(reader.weights)
    if kept:
        fitted[kept] = np.linalg.solve(moments[np.ix_(kept, kept)], moments[kept] @ reader.weights)
    return fitted


def order_anew(channels: list[int], readers: list[Reader]) -> list[int]:
    left, order = list(channels), list[int]()
    while left:
        gone = [{row for channel in order for row in reader.blocks.get(channel, [])} for reader in readers]
        costs = np.zeros(len(left))
        for reader, lost in zip(readers, gone, strict=True):
            kept = [row for row in range(len(reader.weights)) if row not in lost]
            fitted = refit(reader, shrunk(reader.halves[0] + reader.halves[1], reader.rows), kept)
            costs += [cost(reader, fitted, kept, reader.blocks[c]) if c in reader.blocks else 0.0 for c in left]
        order.append(left.pop(int(np.argmin(costs))))
    return order


def error_anew(reader: Reader, gone: list[int]) -> float:
    """Compensation solved on either half, and measured on the other."""
    lost = {row for channel in gone for row in reader.blocks.get(channel, [])}
    kept = [row for row in range(len(reader.weights)) if row not in lost]
    total = 0.0
    for fit, judge in (reader.halves, reader.halves[::-1]):
        rest = refit(reader, shrunk(fit, reader.rows // 2), kept) - reader.weights
        total += float((rest * (judge @ rest)).sum())
    return total / reader.energy


CASES = {
    "one reader": [dict.fromkeys(range(12), 3)],
    "more channels than are held back": [dict.fromkeys(range(40), 1)],
    "blocks of two sizes": [{channel: 1 + channel % 2 for channel in range(14)}],
    "two readers, one without some channels": [dict.fromkeys(range(10), 2), dict.fromkeys(range(3, 10), 4)],
}


@pytest.mark.parametrize("fixed", [0, 4])
@pytest.mark.parametrize("name", CASES)
def test_order_and_errors_are_those_of_solving_anew_after_every_removal(name: str, fixed: int) -> None:
    rng = np.random.default_rng(len(name) + fixed)
    readers = [reader_of(rng, sizes, fixed=fixed) for sizes in CASES[name]]
    channels = sorted({channel for reader in readers for channel in reader.blocks})
    order, errors = order_by_redundancy(channels, readers)
    assert order == order_anew(channels, readers)
    step = -(-len(order) // 8)
    for count in {*range(step, len(order), step), len(order)}:
        exact = [sum(error_anew(reader, order[:size]) for reader in readers) for size in range(step, count + 1, step)]
        last = sum(error_anew(reader, order[:count]) for reader in readers)
        assert np.isclose(errors[count - 1], max([*exact, last]), rtol=1e-6)


def test_a_group_that_nothing_reads_is_removed_without_error() -> None:
    assert order_by_redundancy([4, 2], []) == ([4, 2], [0.0, 0.0])
