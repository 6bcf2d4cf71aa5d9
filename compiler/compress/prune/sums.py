"""Ridge regression from sums: moments of a layer's equations, accumulated over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from compiler.compress.prune.rows import Matrix, as_matrix
from compiler.compress.threads import in_parallel

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge parameters as shares of the energy of each input; cross-validation chooses among them."""


@dataclass(frozen=True)
class Sums:
    """Moments of the equations X·D = R for the change D of the weights.

    Args:
        xx: XᵀX (K, K).
        xr: XᵀR (K, N).
        x: Sum of the rows of X (K,).
        r: Sum of the rows of R (N,).
        rr: Sum of squares of R.
        yy: Sum of squares of the layer's target outputs.
        rows: Number of rows.
    """

    xx: Matrix
    xr: Matrix
    x: Matrix
    r: Matrix
    rr: float
    yy: float
    rows: int

    def __add__(self, other: Sums) -> Sums:
        """The moments of both sets of equations."""
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def centred(self) -> Sums:
        """Moments about the means, for a layer whose bias absorbs the mean."""
        count = max(1, self.rows)
        return Sums(
            self.xx - np.outer(self.x, self.x) / count,
            self.xr - np.outer(self.x, self.r) / count,
            np.zeros_like(self.x),
            np.zeros_like(self.r),
            self.rr - float((self.r**2).sum()) / count,
            self.yy,
            self.rows,
        )


def sums_of(x: Matrix, rest: Matrix, wanted: Matrix) -> Sums:
    """Moments of one batch: X (R, K), residual (R, N), and target outputs (R, N)."""
    squares = float((rest**2).sum()), float((wanted**2).sum())
    return Sums(x.T @ x, x.T @ rest, x.sum(axis=0), rest.sum(axis=0), *squares, len(x))


def solve(halves: Sequence[Sums]) -> tuple[Matrix, float, float]:
    """The change of the weights, with the ridge parameter of least cross-validated error.

    Args:
        halves: Two sets of equations from different samples.

    Returns:
        The change (K, N), zero where none reduces the cross-validated error; the ridge parameter, infinite for no
        change; the cross-validated error, as a share of the energy.
    """
    first, second = halves
    best, left = float("inf"), first.rr + second.rr
    for ridge in RIDGES:
        error = sum(in_parallel(partial(_crossed, ridge=ridge), [(first, second), (second, first)]))
        if error < left:
            best, left = ridge, error
    both = first + second
    change = np.zeros_like(both.xr) if best == float("inf") else _ridge(both, best)
    return change, best, left / max(both.yy, 1e-30)


def error_of(sums: Sums, change: Matrix) -> float:
    """Squared error that remains after a change of the weights."""
    return max(0.0, sums.rr - 2 * float((change * sums.xr).sum()) + float((change * (sums.xx @ change)).sum()))


def _crossed(pair: tuple[Sums, Sums], ridge: float) -> float:
    """Error on the second of two halves of what was solved on the first."""
    return error_of(pair[1], _ridge(pair[0], ridge))


def _ridge(sums: Sums, ridge: float) -> Matrix:
    diagonal = np.diag(sums.xx)
    # the small terms keep inputs that are always zero solvable
    weight = ridge * diagonal + 1e-6 * float(diagonal.mean()) + 1e-12
    return as_matrix(np.linalg.solve(sums.xx + np.diag(weight), sums.xr))
