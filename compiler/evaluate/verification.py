"""Verification: do two samples show the same person? Cosine similarity of embeddings, judged at chosen false accepts.

A pair is accepted whose similarity exceeds a threshold. For a share of false accepts (FAR) the threshold is the lowest
that accepts at most that share of impostor pairs, and TAR is the share of genuine pairs above it. The bootstrap draws
people, not pairs, because pairs of one person are not independent (Bolle, Ratha and Pankanti, 2004): a genuine pair
counts as often as its person was drawn, an impostor pair as often as both of its people were, and copies of one person
are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.schema import Threshold
from compiler.errors import DataError, InvalidModel
from compiler.evaluate.bootstrap import Decisions, Measured, Values, Weights
from compiler.evaluate.dataset import Dataset
from compiler.evaluate.task import matched, pick_output
from compiler.model.numerics import Array, Arrays

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_BLOCK_ROWS = 1024
"""Rows of the similarity matrix that are in memory at a time."""
_ROOM = 4
"""How many times more of the highest impostors are looked at than a threshold passes over in the set as it is."""
_LEAST_KEPT = 1 << 16
"""Highest impostors that are kept in any case: all of them in a small set."""


@dataclass(frozen=True)
class Pairs:
    """The compared pairs of one set: of impostors the counts, and the most similar ones.

    Args:
        genuine: Similarity of pairs of one person, ascending.
        person: The person of each genuine pair.
        below: How many impostor pairs are less similar than each genuine one.
        above: How many are more similar.
        top: The highest impostor similarities, descending.
        top_people: (K, 2), the people of those.
        impostors: How many impostor pairs there are.
        people: How many people there are.
        samples: (people,) samples of each person, where all are compared with all; empty where a file lists the pairs.
        listed: (M, 2), the people of every impostor pair, where a file lists them.
        rank1_pct: Share of samples whose most similar other sample shows the same person; None for listed pairs.
    """

    genuine: Floats
    person: Indices
    below: Indices
    above: Indices
    top: Floats
    top_people: Indices
    impostors: int
    people: int
    samples: Indices
    listed: Indices | None
    rank1_pct: float | None

    def tar(self, far: float) -> float:
        """Share of genuine pairs that are accepted at a share of false accepts."""
        return float(np.mean(self.accepted(far)))

    def accepted(self, far: float) -> NDArray[np.bool_]:
        """Whether each genuine pair is accepted at a share of false accepts."""
        accepted: NDArray[np.bool_] = self.genuine > self.threshold(far)
        return accepted

    def threshold(self, far: float) -> np.float32:
        """The lowest similarity that at most a share of the impostor pairs exceed."""
        threshold: np.float32 = self.top[int(far * self.impostors)]
        return threshold

    def equal_error_rate(self) -> float:
        """The mean of both shares of errors where they are closest, over all thresholds."""
        count = len(self.genuine)
        refused = np.concatenate([np.arange(count), np.arange(count) + 1]) / count
        accepted = np.concatenate([self.impostors - self.below, self.above]) / self.impostors
        best = int(np.argmin(np.abs(refused - accepted)))
        return float(refused[best] + accepted[best]) / 2

    def balanced_accuracy(self) -> float:
        """The best mean of both shares of right answers, over all thresholds."""
        right = 1 - np.arange(len(self.genuine)) / len(self.genuine) + self.below / self.impostors
        return float(np.max(right) / 2)


def measure(
    outputs: Arrays, labels: Array | None, reference: Arrays | None, *, fars: Sequence[float], output: str | None
) -> Measured:
    """TAR at the first of the FARs; the others, EER, rank-1 and balanced accuracy are details."""
    embeddings = pick_output(outputs, output)
    pairs = compare_pairs(embeddings, matched(labels, len(embeddings)), far=max(fars))
    details = {metric_name(far): 100 * pairs.tar(far) for far in fars[1:]}
    details |= {"EER": 100 * pairs.equal_error_rate(), "balanced accuracy": 100 * pairs.balanced_accuracy()}
    details |= {} if pairs.rank1_pct is None else {"rank-1": pairs.rank1_pct}
    return Measured(
        value_pct=100 * pairs.tar(fars[0]),
        details=details | {"genuine pairs": len(pairs.genuine), "impostor pairs": pairs.impostors},
        count=len(pairs.genuine),
        units=pairs.people,
        resample=partial(_resample, pairs, fars[0]),
        decisions=Decisions(np.where(pairs.accepted(fars[0]), 100.0, 0.0), pairs.person),
        width=max(len(pairs.genuine), _looked_at(pairs, fars[0]), 0 if pairs.listed is None else len(pairs.listed)),
    )


def choose_threshold(outputs: Arrays, labels: Array | None, *, far: float, output: str | None) -> Threshold:
    """The threshold at which a model accepts a share of the impostor pairs.

    Args:
        outputs: Output name → (samples, …).
        labels: Of the samples.
        far: The share.
        output: The output that holds the embedding; None for the only one.

    Raises:
        DataError, InvalidModel: As `measure`.
    """
    embeddings = pick_output(outputs, output)
    pairs = compare_pairs(embeddings, matched(labels, len(embeddings)), far=far)
    return Threshold(float(pairs.threshold(far)), far, pairs.impostors, pairs.people)


def metric_name(far: float) -> str:
    """How TAR at a share of false accepts is called."""
    return f"TAR@FAR={far:g}"


def check(dataset: Dataset, *, fars: Sequence[float]) -> tuple[str, ...]:
    """What is odd about the labels.

    Raises:
        DataError: There are no genuine or no impostor pairs.
    """
    labels = matched(dataset.labels, dataset.count)
    genuine, impostors, alone, people = _counts(labels)
    if not impostors or not genuine:
        what = "there is only one person" if people == 1 else "no person has two samples"
        remedy = "Verification needs two people, and one with two samples; `task: embedding` needs neither."
        raise DataError(what, where=dataset.origin, remedy=remedy)
    oddities = [f"{alone} of {people} people have one sample only: they give no genuine pairs"] if alone else []
    oddities += [
        f"FAR {far:g} of {impostors} impostor pairs is less than one pair: no false accept is allowed"
        for far in fars
        if far * impostors < 1
    ]
    return tuple(oddities)


def compare_pairs(embeddings: Floats, labels: Array, *, far: float) -> Pairs:
    """Compares the pairs of a set by cosine similarity.

    Args:
        embeddings: (samples, features), of any length but 0.
        labels: One per sample, then all are compared with all; or (M, 5) pairs as `Dataset.labels` has them.
        far: The largest share of false accepts that will be asked for.

    Raises:
        InvalidModel: An embedding is zero.
        DataError: A pair names a sample that is not there.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise InvalidModel(
            f"{int((lengths == 0).sum())} embeddings are zero: they have no direction", where="evaluation"
        )
    unit = embeddings / lengths
    return _compare_listed(unit, labels) if labels.ndim == 2 else _compare_all(unit, labels, far)


def _compare_listed(unit: Floats, pairs: Array) -> Pairs:
    table = pairs.astype(np.int64)
    if table.shape[1] != 5 or table[:, :2].min() < 0 or table[:, :2].max() >= len(unit):
        raise DataError(f"pairs name samples that are not among the {len(unit)}", where="evaluation")
    similarity = np.einsum("ij,ij->i", unit[table[:, 0]], unit[table[:, 1]])
    _, people = np.unique(table[:, 3:], return_inverse=True)
    people = people.reshape(-1, 2)
    same = table[:, 2] == 1
    ascending = np.argsort(similarity[same], kind="stable")
    genuine, impostor = similarity[same][ascending], np.sort(similarity[~same])
    descending = np.argsort(-similarity[~same], kind="stable")
    return Pairs(
        genuine=genuine,
        person=people[same, 0][ascending],
        below=np.searchsorted(impostor, genuine, "left"),
        above=len(impostor) - np.searchsorted(impostor, genuine, "right"),
        top=similarity[~same][descending],
        top_people=people[~same][descending],
        impostors=len(impostor),
        people=int(people.max()) + 1,
        samples=np.empty(0, np.int64),
        listed=people[~same],
        rank1_pct=None,
    )


def _compare_all(unit: Floats, labels: Array, far: float) -> Pairs:
    _, person = np.unique(labels, return_inverse=True)
    samples = np.bincount(person)
    impostors = (len(unit) ** 2 - int((samples**2).sum())) // 2
    genuine, owner, rank1_pct = _genuine(unit, person, samples)
    below, above = np.zeros(len(genuine), np.int64), np.zeros(len(genuine), np.int64)
    keep = max(_LEAST_KEPT, _ROOM * int(far * impostors))
    top, top_people = np.empty(0, np.float32), np.empty((0, 2), np.int64)
    for first, second, similarity in _impostors(unit, person):
        at_least, more_than = (np.searchsorted(genuine, similarity, side) for side in ("right", "left"))
        below += np.cumsum(np.bincount(at_least, minlength=len(genuine) + 1))[:-1]
        above += len(similarity) - np.cumsum(np.bincount(more_than, minlength=len(genuine) + 1))[:-1]
        high = _highest(similarity, keep)
        top = np.concatenate([top, similarity[high]])
        top_people = np.concatenate([top_people, np.stack([person[first[high]], person[second[high]]], axis=1)])
        best = np.argsort(-top, kind="stable")[:keep]
        top, top_people = top[best], top_people[best]
    return Pairs(
        genuine=genuine,
        person=owner,
        below=below,
        above=above,
        top=top,
        top_people=top_people,
        impostors=impostors,
        people=len(samples),
        samples=samples,
        listed=None,
        rank1_pct=rank1_pct,
    )


def _genuine(unit: Floats, person: Indices, samples: Indices) -> tuple[Floats, Indices, float]:
    """Similarity of the genuine pairs, ascending, their people, and the rank-1 share in percent."""
    similarities, owners, right = [], [], 0
    for start in range(0, len(unit), _BLOCK_ROWS):
        similarity, rows = _block(unit, start)
        first, second = np.nonzero((person[rows, None] == person) & (rows[:, None] < np.arange(len(unit))))
        similarities.append(similarity[first, second])
        owners.append(person[rows[first]])
        similarity[np.arange(len(rows)), rows] = -np.inf
        right += int(((person[similarity.argmax(axis=1)] == person[rows]) & (samples[person[rows]] > 1)).sum())
    genuine, owner = np.concatenate(similarities), np.concatenate(owners)
    ascending = np.argsort(genuine, kind="stable")
    with_another = int(samples[samples > 1].sum())
    return genuine[ascending], owner[ascending], 100 * right / max(1, with_another)


def _impostors(unit: Floats, person: Indices) -> Iterator[tuple[Indices, Indices, Floats]]:
    """First and second sample, and similarity, of the impostor pairs, some at a time."""
    for start in range(0, len(unit), _BLOCK_ROWS):
        similarity, rows = _block(unit, start)
        first, second = np.nonzero((person[rows, None] != person) & (rows[:, None] < np.arange(len(unit))))
        yield rows[first], second, similarity[first, second]


def _block(unit: Floats, start: int) -> tuple[Floats, Indices]:
    rows = np.arange(start, min(start + _BLOCK_ROWS, len(unit)))
    return unit[rows] @ unit.T, rows


def _highest(values: Floats, count: int) -> Indices:
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(-values, count)[:count]


def _looked_at(pairs: Pairs, far: float) -> int:
    return min(len(pairs.top), _ROOM * int(far * pairs.impostors) + 64)


def _resample(pairs: Pairs, far: float, weights: Weights) -> Values:
    """TAR in percent (resamples,) for how often each person was drawn (resamples, people)."""
    allowed = np.floor(far * _impostor_weight(pairs, weights))
    threshold = _thresholds(pairs, weights, allowed, _looked_at(pairs, far))
    missing = np.isnan(threshold) & (allowed >= 0)
    if missing.any():
        threshold[missing] = _thresholds(pairs, weights[missing], allowed[missing], len(pairs.top))
    drawn = weights[:, pairs.person]
    accepted = np.where(pairs.genuine > threshold[:, None], drawn, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(threshold), np.nan, 100 * accepted / drawn.sum(axis=1))


def _thresholds(pairs: Pairs, weights: Weights, allowed: Values, count: int) -> Values:
    """The highest impostor similarity beyond the allowed weight of false accepts; NaN where it is not among `count`."""
    first, second = pairs.top_people[:count].T
    passed = np.cumsum(weights[:, first] * weights[:, second], axis=1) > allowed[:, None]
    return np.where(passed.any(axis=1), pairs.top[np.argmax(passed, axis=1)], np.nan)


def _impostor_weight(pairs: Pairs, weights: Weights) -> Values:
    """How many impostor pairs each resample holds."""
    if pairs.listed is not None:
        first, second = pairs.listed.T
        listed: Values = (weights[:, first] * weights[:, second]).sum(axis=1)
        return listed
    counts = weights * pairs.samples
    everything: Values = (counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)) / 2
    return everything


def _counts(labels: Array) -> tuple[int, int, int, int]:
    """Genuine pairs, impostor pairs, people with one sample only, and people."""
    if labels.ndim == 2:
        same = int((labels[:, 2] == 1).sum())
        return same, len(labels) - same, 0, len(np.unique(labels[:, 3:]))
    _, samples = np.unique(labels, return_counts=True)
    genuine = int((samples * (samples - 1)).sum()) // 2
    impostors = (int(samples.sum()) ** 2 - int((samples**2).sum())) // 2
    return genuine, impostors, int((samples == 1).sum()), len(samples)
