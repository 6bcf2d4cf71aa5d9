"""Parts of a data set, so that what chooses a build is not what judges it at the end.

A group is never divided: of verification a person, of every other task a sample. Groups are ordered by a digest of
their number and a seed, so that a part is the same in every build and mixes neighbours of the file.

held out    two halves, where each is large enough that one decision weighs little against the limit: one chooses, the
            other judges what was chosen
cross-fit   where data are few: each fold is judged by the trial that the other folds choose (Stone, 1974), so that
            every decision counts once and none was used to choose what it judges
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.schema import SplitKind
from compiler.model.numerics import Array, Arrays

Groups = NDArray[np.int64]

# another seed would divide every data set anew, and change figures that were delivered
SEED = "fleetc split 1"

FOLDS = 5
"""Four fifths choose: enough to choose as all would, and a fold still holds several people."""


@dataclass(frozen=True)
class Split:
    """How a data set is divided.

    Args:
        kind: Whether a half is held out, or folds are judged in turn.
        choosing: Groups that choose; all of them where folds are judged in turn.
        folds: Groups that judge, fold by fold; one fold where a half is held out.
        why: The reason for this kind.
    """

    kind: SplitKind
    choosing: Groups
    folds: tuple[Groups, ...]
    why: str


def make_split(
    labels: Array | None, count: int, *, by_person: bool, limit_pct: float, holds_out: bool = False
) -> Split:
    """How a data set is divided for a limit.

    Args:
        labels: The data set's.
        count: Its samples.
        by_person: Whether groups are people, and decisions pairs of one person.
        limit_pct: Most points that may be lost.
        holds_out: Whether a half is held out however few the data are: training that looks at data cannot be done anew
            for each fold.
    """
    # halves would tear pairs apart, and with them the decisions
    if labels is not None and labels.ndim == 2 and not by_person:
        why = "a pair belongs to two samples, and this task knows no people"
        return Split(SplitKind.NONE, np.arange(count, dtype=np.int64), (), why)
    owners = decision_owners(labels, count, by_person=by_person)
    groups = _shuffled(int(_groups_of(labels, count, by_person=by_person).max()) + 1)
    halves = groups[: (len(groups) + 1) // 2], groups[(len(groups) + 1) // 2 :]
    fewest = min(int(np.isin(owners, half).sum()) for half in halves)
    if by_person and not all(_has_impostors(labels, half) for half in halves):
        fewest = 0  # a half of one person has nobody to be taken for
    # one decision may weigh half of the limit at most: with fewer, chance alone would decide
    if fewest and 100.0 / fewest <= limit_pct / 2:
        return _held_out(halves, f"each half has {fewest} decisions")
    if fewest and holds_out:
        return _held_out(halves, "what is trained looks at the other half")
    if len(groups) < FOLDS:
        return Split(SplitKind.NONE, np.sort(groups), (), f"there are {len(groups)} groups, fewer than {FOLDS} folds")
    why = f"a half would have {fewest} decisions, and one of them would weigh more than half of the limit"
    return Split(SplitKind.CROSS_FIT, np.sort(groups), tuple(np.sort(fold) for fold in _dealt(groups)), why)


def _held_out(halves: tuple[Groups, Groups], why: str) -> Split:
    return Split(SplitKind.HELD_OUT, np.sort(halves[0]), (np.sort(halves[1]),), why)


def decision_owners(labels: Array | None, count: int, *, by_person: bool) -> Groups:
    """The group of every decision: of a genuine pair its person, of a text's token its window, else a sample itself."""
    if labels is not None and labels.dtype.names:  # windows of text: every judged token of one is a decision
        tokens: Array = labels[labels.dtype.names[0]]  # type: ignore[call-overload]  # a record for each window
        return np.repeat(np.arange(count, dtype=np.int64), tokens.shape[1])
    if not by_person or labels is None:
        return np.arange(count, dtype=np.int64)
    if labels.ndim == 2:
        genuine: Groups = _people(labels)[labels[:, 2] == 1, 0]
        return genuine
    _, person = np.unique(labels, return_inverse=True)
    samples = np.bincount(person)
    return np.repeat(np.arange(len(samples)), samples * (samples - 1) // 2).astype(np.int64)


def take_part(
    outputs: Arrays, labels: Array | None, chosen: Groups, *, by_person: bool
) -> tuple[dict[str, Array], Array | None]:
    """Outputs and labels of some groups. Of a file of pairs those pairs stay whose people are both among them."""
    if by_person and labels is not None and labels.ndim == 2:
        pairs = np.isin(_people(labels), chosen).all(axis=1)
        return dict(outputs), labels[pairs]
    count = len(next(iter(outputs.values())))
    rows = np.isin(_groups_of(labels, count, by_person=by_person), chosen)
    return {name: array[rows] for name, array in outputs.items()}, None if labels is None else labels[rows]


def _groups_of(labels: Array | None, count: int, *, by_person: bool) -> Groups:
    if not by_person or labels is None:
        return np.arange(count, dtype=np.int64)
    if labels.ndim == 2:
        return _people(labels).reshape(-1)
    _, person = np.unique(labels, return_inverse=True)
    return person.astype(np.int64)


def _people(pairs: Array) -> Groups:
    _, people = np.unique(pairs[:, 3:], return_inverse=True)
    return people.reshape(-1, 2).astype(np.int64)


def _has_impostors(labels: Array | None, chosen: Groups) -> bool:
    """Whether there are pairs of two people among some of them."""
    if labels is None or labels.ndim == 1:
        return len(chosen) > 1
    inside = np.isin(_people(labels), chosen).all(axis=1)
    return bool((labels[inside, 2] == 0).any())


def _shuffled(count: int) -> Groups:
    order = sorted(range(count), key=lambda group: hashlib.sha256(f"{SEED} {group}".encode()).digest())
    return np.array(order, np.int64)


def _dealt(groups: Groups) -> Sequence[Groups]:
    return [groups[start::FOLDS] for start in range(FOLDS)]
