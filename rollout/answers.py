"""Answers of two builds to the same requests, compared row by row and counted as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rollout.limits import Alphas, Limits
from rollout.means import Moments
from rollout.metric import Metric, Role, mean_metric, share_metric
from rollout.shares import Count, exceeds

Array = NDArray[np.generic]
Outputs = Mapping[str, Array]
"""Output's name → values, shape `(N, …)`: one row a request."""

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]


class Answers:
    """What was counted so far, in memory that does not grow.

    Args:
        threshold: Similarity that accepts a pair of embeddings: rows are paired in the order in which they come, also
            across requests. None compares the highest score of each row.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self.current_errors, self.candidate_errors = Count(), Count()
        self._flips, self._drops = Count(), Moments()
        self._unpaired: tuple[Values, Values] | None = None

    def add(self, candidate: Outputs, current: Outputs) -> None:
        """Compares the answers to the same requests."""
        good, other = finite_rows(candidate), finite_rows(current)
        self.candidate_errors = self.candidate_errors.add(int(good.size - good.sum()), good.size)
        self.current_errors = self.current_errors.add(int(other.size - other.sum()), other.size)
        usable = good & other
        self._drops = self._drops.add(1 - _cosines(candidate, current, usable))
        flips = self._flipped(candidate, current, usable)
        self._flips = self._flips.add(int(flips.sum()), flips.size)

    def add_failed(self, rows: int) -> None:
        """Requests that the current build answered and the candidate did not."""
        self.candidate_errors = self.candidate_errors.add(rows, rows)
        self.current_errors = self.current_errors.add(0, rows)

    def breached(self, limits: Limits, alphas: Alphas) -> bool:
        """Whether a guardrail is beyond its limit; quick, to be asked after every request."""
        counts = ((self.candidate_errors, limits.error_share), (self._flips, limits.decision_share))
        return any(exceeds(count, limit, alpha=alphas.other) for count, limit in counts)

    def metrics(self, limits: Limits, alphas: Alphas) -> list[Metric]:
        """Errors, decisions flipped, and how far the answers are apart."""
        guardrail, alpha = Role.GUARDRAIL, alphas.other
        errors = self.candidate_errors
        return [
            share_metric(
                "errors", errors, limit=limits.error_share, role=guardrail, current=self.current_errors, alpha=alpha
            ),
            share_metric("decisions flipped", self._flips, limit=limits.decision_share, role=guardrail, alpha=alpha),
            mean_metric(
                "cosine distance",
                "",
                current=Moments(),
                difference=self._drops,
                limit=limits.cosine_drop,
                role=Role.SIGNAL,
                alpha=alphas.signal,
            ),
        ]

    @property
    def agreement(self) -> float:
        """Share of the decisions that are the same; NaN without any."""
        return 1 - self._flips.share

    def _flipped(self, candidate: Outputs, current: Outputs, usable: Mask) -> Mask:
        if self._threshold is None:
            rows = [_top(array) != _top(current[name]) for name, array in candidate.items()]
            return np.asarray(np.any(np.stack(rows), axis=0)[usable])
        mine, other = (_rows(next(iter(outputs.values()))) for outputs in (candidate, current))
        return self._pair_flips(mine, other, self._threshold)

    def _pair_flips(self, candidate: Values, current: Values, threshold: float) -> Mask:
        """Pairs of embeddings that one build accepts and the other does not; an odd row waits for the next."""
        if self._unpaired is not None:
            candidate = np.concatenate([self._unpaired[0], candidate])
            current = np.concatenate([self._unpaired[1], current])
        even = len(candidate) // 2 * 2
        self._unpaired = (candidate[even:].copy(), current[even:].copy()) if even < len(candidate) else None
        accepted = [_cosine(rows[0:even:2], rows[1:even:2]) > threshold for rows in (candidate, current)]
        is_finite = [np.isfinite(rows[:even]).all(axis=1).reshape(-1, 2).all(axis=1) for rows in (candidate, current)]
        return np.asarray((accepted[0] != accepted[1])[is_finite[0] & is_finite[1]])


def finite_rows(outputs: Outputs) -> Mask:
    """Rows whose every value is a number."""
    rows = [np.isfinite(_rows(array)).all(axis=1) for array in outputs.values()]
    return np.asarray(np.all(np.stack(rows), axis=0))


def _top(array: Array) -> NDArray[np.intp]:
    rows = _rows(array)
    # One number a row has no highest score: its sign is the decision.
    return np.argmax(rows, axis=1) if rows.shape[1] > 1 else (rows[:, 0] > 0).astype(np.intp)


def _cosines(candidate: Outputs, current: Outputs, usable: Mask) -> Values:
    """The lowest cosine similarity of a request's outputs."""
    pairs: Sequence[tuple[Values, Values]] = [(_rows(array), _rows(current[name])) for name, array in candidate.items()]
    values: Values = np.min([_cosine(mine[usable], other[usable]) for mine, other in pairs], axis=0)
    return values


def _cosine(first: Values, second: Values) -> Values:
    # Two rows of zeros are the same answer; a row of zeros against another is as far away as can be said.
    same = (first == second).all(axis=1)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("ij,ij->i", first, second)
    cosines = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    return np.asarray(np.where(same, 1.0, cosines), np.float64)


def _rows(array: Array) -> Values:
    return np.asarray(array, np.float64).reshape(len(array), int(np.prod(array.shape[1:])))
