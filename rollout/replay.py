"""A verdict without a server: two builds' stored answers to the same requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from compiler.evaluate.samples import read_arrays
from rollout.answers import Answers, Array
from rollout.bounds import ALPHA
from rollout.latency import Times, late_metrics, quantile_metrics
from rollout.limits import Alphas, Limits, divide_alpha
from rollout.means import Moments
from rollout.metric import Metric, Role, mean_metric
from rollout.verdict import Rules, Traffic, Verdict, judge

LATENCY = "latency_ms"
"""The array of a recording that is no output: milliseconds of each request."""


@dataclass(frozen=True)
class Recording:
    """What one build answered, request by request.

    Args:
        outputs: Output's name → values, shape `(N, …)`: one row a request.
        latency_ms: Time of each request, shape `(N,)`; None where nobody measured it.
        where: The file, for messages.
        sha256: Digest of the file; empty where there is none.
    """

    outputs: Mapping[str, Array]
    latency_ms: NDArray[np.float64] | None
    where: str
    sha256: str = ""

    @property
    def count(self) -> int:
        """Number of requests."""
        return len(next(iter(self.outputs.values())))


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
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Recording(arrays, None if latency is None else _times(latency, path), str(path), digest)


def replay(candidate: Recording, current: Recording, limits: Limits, *, alpha: float = ALPHA) -> Verdict:
    """The verdict on stored answers.

    Args:
        candidate: Answers of the candidate.
        current: Answers of the build in use to the same requests.
        limits: What the candidate is held against.
        alpha: The probability that any guardrail is ever breached by a build that keeps every limit.

    Raises:
        DataError: The recordings are not of the same requests and outputs.
    """
    _refuse_others(candidate, current)
    _refuse_no_pairs(candidate, limits)
    alphas = divide_alpha(2, has_latency=limits.latency_ms is not None, alpha=alpha)
    answers = Answers(limits.threshold)
    answers.add(candidate.outputs, current.outputs)
    metrics = [*answers.metrics(limits, alphas), *_latency(candidate, current, limits, alphas)]
    traffic = Traffic(current.count, candidate.count, is_same_build=_are_one(candidate, current))
    return judge(metrics, traffic, Rules(ramp=()))


def _are_one(candidate: Recording, current: Recording) -> bool:
    """Whether both are one recording. Two builds may answer alike, but no two runs take the same times."""
    is_equal = candidate.sha256 != "" and candidate.sha256 == current.sha256
    return is_equal and (candidate.latency_ms is not None or candidate.where == current.where)


def _latency(candidate: Recording, current: Recording, limits: Limits, alphas: Alphas) -> list[Metric]:
    mine, other = candidate.latency_ms, current.latency_ms
    if mine is None or other is None:
        if limits.latency_ms is None:
            return []
        missing = candidate if mine is None else current
        raise DataError(f"there is no {LATENCY} to hold against a limit", where=missing.where)
    times = [Times(limits) for _ in range(2)]
    for one, values in zip(times, (mine, other), strict=True):
        for value in values.tolist():
            one.add(value)
    pairs = Moments().add(mine - other)
    mean = mean_metric("latency", "ms", current=Moments().add(other), difference=pairs, limit=np.nan, role=Role.SHOWN)
    return [*late_metrics(times[0], times[1], limits, alphas), mean, *quantile_metrics(mine, other)]


def _refuse_no_pairs(candidate: Recording, limits: Limits) -> None:
    if limits.threshold is not None and (candidate.count % 2 or len(candidate.outputs) != 1):
        what = f"{candidate.count} rows of {len(candidate.outputs)} outputs are no pairs of embeddings"
        raise DataError(what, where=candidate.where, remedy="Give one output with two rows a pair.")


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
