"""A verdict without a server: two builds' stored answers to the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from compiler.evaluate.samples import read_arrays
from rollout.bounds import ALPHA
from rollout.means import Moments
from rollout.metric import Judged, Metric, Role, make_metric, mean_metric, share_metric
from rollout.quantiles import quantile_bounds
from rollout.shares import Count
from rollout.verdict import Rules, Traffic, Verdict, judge

LATENCY = "latency_ms"
"""The array of a recording that is no output: milliseconds of each request."""

Array = NDArray[np.generic]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Recording:
    """What one build answered, request by request.

    Args:
        outputs: Output's name → values, shape `(N, …)`: one row a request.
        latency_ms: Time of each request, shape `(N,)`; None where nobody measured it.
        where: The file, for messages.
    """

    outputs: Mapping[str, Array]
    latency_ms: NDArray[np.float64] | None
    where: str

    @property
    def count(self) -> int:
        """Number of requests."""
        return len(next(iter(self.outputs.values())))


@dataclass(frozen=True)
class Limits:
    """What a candidate is held against.

    Args:
        error_share: Share of requests whose answer may be no number (NaN or infinite).
        decision_share: Share of requests that may be decided otherwise.
        cosine_drop: How far the mean cosine similarity of both answers may fall below 1.
        latency_ms: Time that 99 % of the requests must keep; None where nothing is asked.
        threshold: Similarity above which two faces are one person: rows are pairs of embeddings, first and second,
            third and fourth. None compares the highest score of each row.
    """

    error_share: float = 0.01
    decision_share: float = 0.01
    cosine_drop: float = 0.01
    latency_ms: float | None = None
    threshold: float | None = None


LATE_SHARE = 0.01
"""A limit for p99 is a limit for the share of requests above it."""


def read_recording(path: Path) -> Recording:
    """Reads a `.npz` of outputs, as `fleetc run` writes it, with `latency_ms` beside them where it was measured.

    Raises:
        DataError: It cannot be read, has no outputs, or its arrays have other numbers of rows.
    """
    arrays = read_arrays(path)
    latency = arrays.pop(LATENCY, None)
    rows = {len(array) if array.ndim else 0 for array in (*arrays.values(), *([] if latency is None else [latency]))}
    if not arrays or len(rows) != 1:
        what = "it holds no outputs" if not arrays else f"its arrays have other numbers of requests: {sorted(rows)}"
        raise DataError(what, where=str(path), remedy=f"Give arrays of one row a request, and {LATENCY} if measured.")
    return Recording(arrays, None if latency is None else _times(latency, path), str(path))


def replay(candidate: Recording, current: Recording, limits: Limits, *, alpha: float = ALPHA) -> Verdict:
    """The verdict on stored answers.

    Args:
        candidate: Answers of the candidate.
        current: Answers of the build in use to the same requests.
        limits: What the candidate is held against.
        alpha: The probability that any metric is ever judged wrongly; the metrics share it.

    Raises:
        DataError: The recordings are not of the same requests and outputs.
    """
    _refuse_others(candidate, current)
    count = 3 + (limits.latency_ms is not None)
    metrics = [*_answers(candidate, current, limits, alpha / count)]
    metrics += _latency(candidate, current, limits, alpha / count)
    return judge(metrics, Traffic(current.count, candidate.count), Rules(ramp=()))


def _answers(candidate: Recording, current: Recording, limits: Limits, alpha: float) -> Sequence[Metric]:
    good, usable = _finite_rows(candidate), _finite_rows(candidate) & _finite_rows(current)
    errors = [Count(row.size, int(row.size - row.sum())) for row in (good, _finite_rows(current))]
    flips = _decided_otherwise(candidate, current, usable, limits)
    drops = 1 - _cosines(candidate, current, usable)
    guardrail = Role.GUARDRAIL
    return (
        share_metric("errors", errors[0], limit=limits.error_share, role=guardrail, current=errors[1], alpha=alpha),
        share_metric("decisions flipped", flips, limit=limits.decision_share, role=guardrail, alpha=alpha),
        mean_metric(
            "cosine distance",
            "",
            current=Moments(),
            difference=Moments().add(drops),
            limit=limits.cosine_drop,
            role=Role.SIGNAL,
            alpha=alpha,
        ),
    )


def _latency(candidate: Recording, current: Recording, limits: Limits, alpha: float) -> list[Metric]:
    mine, other = candidate.latency_ms, current.latency_ms
    if mine is None or other is None:
        if limits.latency_ms is None:
            return []
        missing = candidate if mine is None else current
        raise DataError(f"there is no {LATENCY} to hold against a limit", where=missing.where)
    shown = [_quantile(f"p{100 * share:g}", mine, other, share) for share in (0.5, 0.99)]
    pairs = Moments().add(mine - other)
    mean = mean_metric("latency", "ms", current=Moments().add(other), difference=pairs, limit=np.nan, role=Role.SHOWN)
    return [*_late(mine, other, limits, alpha), mean, *shown]


def _late(mine: NDArray[np.float64], other: NDArray[np.float64], limits: Limits, alpha: float) -> list[Metric]:
    if limits.latency_ms is None:
        return []
    counts = [Count(times.size, int((times > limits.latency_ms).sum())) for times in (mine, other)]
    name = f"later than {limits.latency_ms:g} ms"
    return [share_metric(name, counts[0], limit=LATE_SHARE, role=Role.GUARDRAIL, current=counts[1], alpha=alpha)]


def _quantile(name: str, mine: NDArray[np.float64], other: NDArray[np.float64], share: float) -> Metric:
    values = [float(np.quantile(times, share)) if times.size else np.nan for times in (other, mine)]
    return make_metric(
        f"latency {name}",
        "ms",
        role=Role.SHOWN,
        judged=Judged.VALUE,
        values=(values[0], values[1]),
        bounds=quantile_bounds(mine, share),
        limit=np.nan,
        samples=mine.size,
    )


def _decided_otherwise(candidate: Recording, current: Recording, usable: Mask, limits: Limits) -> Count:
    """Requests that the builds decide differently: by the threshold, or by the highest score of each output."""
    if limits.threshold is None:
        rows = [_top(candidate, name) != _top(current, name) for name in candidate.outputs]
        different = np.any(np.stack(rows), axis=0)[usable]
        return Count(different.size, int(different.sum()))
    if candidate.count % 2 or len(candidate.outputs) != 1:
        what = f"{candidate.count} rows of {len(candidate.outputs)} outputs are no pairs of embeddings"
        raise DataError(what, where=candidate.where, remedy="Give one output with two rows a pair.")
    both = usable[0::2] & usable[1::2]
    mine, other = (_pair_similarity(one)[both] > limits.threshold for one in (candidate, current))
    return Count(int(both.sum()), int((mine != other).sum()))


def _pair_similarity(recording: Recording) -> NDArray[np.float64]:
    rows = _rows(next(iter(recording.outputs.values())))
    return _cosine(rows[0::2], rows[1::2])


def _top(recording: Recording, name: str) -> NDArray[np.intp]:
    rows = _rows(recording.outputs[name])
    # One number a row has no highest score: its sign is the decision.
    return np.argmax(rows, axis=1) if rows.shape[1] > 1 else (rows[:, 0] > 0).astype(np.intp)


def _cosines(candidate: Recording, current: Recording, usable: Mask) -> NDArray[np.float64]:
    """The lowest cosine similarity of a request's outputs."""
    pairs = [(_rows(array), _rows(current.outputs[name])) for name, array in candidate.outputs.items()]
    values: NDArray[np.float64] = np.min([_cosine(mine[usable], other[usable]) for mine, other in pairs], axis=0)
    return values


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    # Two rows of zeros are the same answer; a row of zeros against another is as far away as can be said.
    same = (first == second).all(axis=1)
    products = np.einsum("ij,ij->i", first, second)
    cosines = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    return np.asarray(np.where(same, 1.0, cosines), np.float64)


def _rows(array: Array) -> NDArray[np.float64]:
    return np.asarray(array, np.float64).reshape(len(array), int(np.prod(array.shape[1:])))


def _finite_rows(recording: Recording) -> Mask:
    rows = [np.isfinite(_rows(array)).all(axis=1) for array in recording.outputs.values()]
    return np.asarray(np.all(np.stack(rows), axis=0))


def _times(latency: Array, path: Path) -> NDArray[np.float64]:
    times = latency.astype(np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise DataError(f"{LATENCY} is not one finite number a request", where=str(path))
    return times


def _refuse_others(candidate: Recording, current: Recording) -> None:
    shapes = [{name: array.shape for name, array in one.outputs.items()} for one in (candidate, current)]
    if shapes[0] != shapes[1]:
        what = f"outputs {shapes[0]} against {shapes[1]} of {current.where}"
        raise DataError(what, where=candidate.where, remedy="Record both builds with the same requests.")
