"""Order of removal by redundancy: a channel is worth the error that remains when its readers compensate for it.

Optimal Brain Compression (E. Frantar and D. Alistarh, 2022) with a channel's rows of the weights as the block S: with
moments H of a reader's inputs and its weights W, removing S costs tr(W_Sᵀ·(H⁻¹_SS)⁻¹·W_S), after

    W −= H⁻¹_:S·(H⁻¹_SS)⁻¹·W_S        H⁻¹ −= H⁻¹_:S·(H⁻¹_SS)⁻¹·H⁻¹_S:

With (H⁻¹_SS) = L·Lᵀ both are products with one factor F = H⁻¹_:S·L⁻ᵀ: W −= F·(L⁻¹·W_S), H⁻¹ −= F·Fᵀ. A removal needs
only the columns of H⁻¹ that it takes, and the blocks on its diagonal. So factors are held back, and many of them are
subtracted by one product of matrices, in which rows that are gone are left out (as LAPACK's blocked factorizations do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.compress.prune.rows import Matrix, as_matrix

STEPS = 8
"""Numbers of removed channels per group at which the held-out error is computed; it is interpolated between them."""

_DELAY = 16
"""Removals whose factors are held back: a product of fewer is bound by memory, and with more the columns cost more."""

_BASE = 128
"""Size from which a triangle is inverted by halves: below, one call of LAPACK is faster than products of matrices."""


@dataclass
class Reader:
    """One layer that reads the group.

    Args:
        weights: Its weights (K, N).
        halves: Moments (K, K) of its inputs on each half of the data, for two-fold cross-validation.
        rows: Number of rows in both.
        blocks: Channel → its rows of the weights.
        energy: Energy of its outputs over their error gain; errors are divided by it.
    """

    weights: Matrix
    halves: tuple[Matrix, Matrix]
    rows: int
    blocks: dict[int, list[int]]
    energy: float


def shrunk(moments: Matrix, rows: int) -> Matrix:
    """Moments shrunk towards their diagonal, so that they can be inverted: the fewer rows, the more."""
    # 0.1 K/R: the relative error of a covariance of K inputs from R rows grows like this; the floor keeps dead inputs
    # invertible
    share = 1e-3 + 0.1 * len(moments) / max(1, rows)
    floor = 1e-6 * float(np.trace(moments)) / len(moments) + 1e-12
    return moments + np.diag(share * np.diag(moments) + floor)


def order_by_redundancy(channels: Sequence[int], readers: Sequence[Reader]) -> tuple[list[int], list[float]]:
    """The channels, the least important first, and the error after each removal."""
    eliminations = [_Elimination(reader) for reader in readers]
    left, order = list(channels), list[int]()
    while left:
        costs = sum((elimination.costs(left) for elimination in eliminations), np.zeros(len(left)))
        order.append(left.pop(int(np.argmin(costs))))
        for elimination in eliminations:
            elimination.remove(order[-1])
    step = -(-len(order) // STEPS)
    counts = sorted({*range(step, len(order), step), len(order)})
    totals = sum((_held_out(reader, order, counts) for reader in readers), np.zeros(len(counts)))
    # more removed channels cannot err less: a decrease is noise of the estimate
    errors = np.interp(np.arange(1, len(order) + 1), [0, *counts], np.maximum.accumulate([0.0, *totals]))
    return order, errors.tolist()


class _Elimination:
    """Weights and inverse moments of one reader while channels are removed.

    Args:
        reader: The layer.
    """

    def __init__(self, reader: Reader) -> None:
        self._energy = reader.energy
        self._weights = reader.weights.copy()
        self._inverse = as_matrix(np.linalg.inv(shrunk(reader.halves[0] + reader.halves[1], reader.rows)))
        self._blocks = {channel: np.array(rows) for channel, rows in reader.blocks.items()}
        self._gone = np.zeros(len(self._weights), bool)
        self._prices: dict[int, float] = {}
        self._begin()

    def costs(self, channels: Sequence[int]) -> Matrix:
        """The error that the removal of each channel adds, as a share of the energy."""
        costs = np.zeros(len(channels))
        for blocks in self._by_size:
            prices = (np.linalg.inv(blocks.inner) * blocks.squares).sum(axis=(1, 2)) / self._energy
            self._prices |= zip(blocks.channels, prices.tolist(), strict=True)
        for place, channel in enumerate(channels):
            costs[place] = self._prices.get(channel, 0.0)
        return costs

    def remove(self, channel: int) -> None:
        """The other weights compensate for the channel; its rows of the inverse become zero."""
        block = self._blocks.pop(channel, None)
        if block is None:
            return
        factors, made_up = self._factors[:, : self._held], self._made_up[: self._held]
        columns = self._inverse[block].T - factors @ factors[block].T  # it is symmetric, and rows are contiguous
        lower = np.linalg.inv(np.linalg.cholesky(columns[block]))
        factor = columns @ lower.T
        part = lower @ (self._weights[block] - factors[block] @ made_up)
        shared = self._weights @ part.T - factors @ (made_up @ part.T)  # W·(L⁻¹·W_S)ᵀ
        for blocks in self._by_size:
            blocks.drop(channel)
            blocks.subtract(factor, shared, part @ part.T)
        held = slice(self._held, self._held + len(block))
        self._factors[:, held], self._made_up[held] = factor, part
        self._held += len(block)
        self._gone[block] = True
        if self._held + self._widest > self._factors.shape[1]:
            self._settle(self._factors[:, : self._held], self._made_up[: self._held])

    def _settle(self, factors: Matrix, made_up: Matrix) -> None:
        """Subtracts the factors that were held back, from the rows that are left."""
        rows = np.flatnonzero(~self._gone)
        factors = factors[rows]
        self._weights = self._weights[rows] - factors @ made_up
        self._inverse = self._inverse[np.ix_(rows, rows)]
        self._inverse -= factors @ factors.T
        places = np.cumsum(~self._gone) - 1
        self._blocks = {channel: places[block] for channel, block in self._blocks.items()}
        self._gone = np.zeros(len(rows), bool)
        self._begin()

    def _begin(self) -> None:
        sizes = dict.fromkeys(len(block) for block in self._blocks.values())
        self._widest, self._held = max(sizes, default=0), 0
        self._factors = np.empty((len(self._weights), _DELAY * self._widest))
        self._made_up = np.empty((_DELAY * self._widest, self._weights.shape[1]))
        self._by_size = [
            _Blocks(
                {channel: block for channel, block in self._blocks.items() if len(block) == size},
                self._inverse,
                self._weights,
            )
            for size in sizes
        ]


class _Blocks:
    """The blocks of one size: of the inverse on its diagonal, and the products of their weights.

    Args:
        blocks: Channel → its rows.
        inverse: The inverse moments (K, K).
        weights: The weights (K, N).
    """

    def __init__(self, blocks: dict[int, Matrix], inverse: Matrix, weights: Matrix) -> None:
        self.channels = list(blocks)
        self._rows = np.array(list(blocks.values()))
        self.inner = inverse[self._rows[:, :, None], self._rows[:, None, :]]
        parts = weights[self._rows]
        self.squares = parts @ np.swapaxes(parts, 1, 2)

    def drop(self, channel: int) -> None:
        """Forgets a channel."""
        if channel in self.channels:
            place = self.channels.index(channel)
            self.channels.pop(place)
            self._rows, self.inner, self.squares = (
                np.delete(array, place, axis=0) for array in (self._rows, self.inner, self.squares)
            )

    def subtract(self, factor: Matrix, shared: Matrix, inside: Matrix) -> None:
        """Follows a removal: (W − F·V)·(W − F·V)ᵀ of every block, from W·Vᵀ and V·Vᵀ."""
        own = factor[self._rows]
        turned = np.swapaxes(own, 1, 2)
        self.inner -= own @ turned
        mixed = shared[self._rows] @ turned
        self.squares += own @ inside @ turned - mixed - np.swapaxes(mixed, 1, 2)


def _held_out(reader: Reader, order: Sequence[int], counts: Sequence[int]) -> Matrix:
    """Cross-validated error after the first channels of an order, for several numbers of them.

    Compensation is solved on one half and measured on the other. With rows in the order in which they are kept, what is
    kept is always a leading part, and so is its Cholesky factor: H = L·Lᵀ. The least squares on the first k rows are
    W′ = (H_kk)⁻¹·(H·W)_k = L_kk⁻ᵀ·(Lᵀ·W)_k, since (H·W)_k = L_kk·(Lᵀ·W)_k: one factorization serves all numbers.
    """
    lost = [reader.blocks.get(channel, []) for channel in order]
    rows = np.array([row for block in lost for row in block], dtype=np.int64)
    kept_first = np.concatenate([np.setdiff1d(np.arange(len(reader.weights)), rows), rows[::-1]])
    sizes = [len(reader.weights) - sum(map(len, lost[:count])) for count in counts]
    weights = reader.weights[kept_first]
    totals = np.zeros(len(counts))
    for fit, judge in (reader.halves, reader.halves[::-1]):
        moments, judged = (half[np.ix_(kept_first, kept_first)] for half in (fit, judge))
        lower = as_matrix(np.linalg.cholesky(shrunk(moments, reader.rows // 2)))
        root, known = _inverse_triangle(lower), lower.T @ weights
        products = judged @ weights
        whole = float((weights * products).sum())
        for place, size in enumerate(sizes):
            solved = root[:size, :size].T @ known[:size]
            # |W′ − W|² in the norm of the other half's moments
            totals[place] += float((solved * (judged[:size, :size] @ solved - 2 * products[:size])).sum()) + whole
    return np.maximum(totals, 0.0) / reader.energy


def _inverse_triangle(matrix: Matrix) -> Matrix:
    """The inverse of a lower triangular matrix [A 0; C D]: [A⁻¹ 0; −D⁻¹·C·A⁻¹ D⁻¹]."""
    size = len(matrix)
    if size <= _BASE:
        return np.tril(as_matrix(np.linalg.inv(matrix)))
    half = size // 2
    inverse = np.zeros_like(matrix)
    inverse[:half, :half] = _inverse_triangle(matrix[:half, :half])
    inverse[half:, half:] = _inverse_triangle(matrix[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ matrix[half:, :half] @ inverse[:half, :half]
    return inverse
