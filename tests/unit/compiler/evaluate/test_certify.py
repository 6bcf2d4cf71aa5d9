"""What chooses a build is not what judges it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from compiler.evaluate import SplitKind, find_task, halves, make_split, open_dataset, sample_digests, take_part
from compiler.evaluate.certify import Contender, corrected_level, cross_fit
from compiler.fleet.data import Evaluation
from compiler.model.spec import TensorSpec

SPEC = TensorSpec("x", "float32", ("N", 2))
CLASSES = find_task(Evaluation(task="classification", path=Path("unused")))
PEOPLE = find_task(Evaluation(task="verification", path=Path("unused"), far=(0.01,)))


def outputs(hits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of two classes: the right one where `hits` says so."""
    guess = np.where(hits, labels, 1 - labels)
    return {"y": np.eye(2, dtype=np.float32)[guess]}


def contenders(columns: Sequence[np.ndarray], labels: np.ndarray) -> list[Contender]:
    """Candidates by which samples they get right; the float model gets all of them right."""
    perfect = CLASSES.measure(outputs(np.ones(len(labels), bool), labels), labels, None)
    return [Contender(perfect, CLASSES.measure(outputs(hits, labels), labels, None)) for hits in columns]


def fit(candidates: list[Contender], chosen: int, count: int, labels: np.ndarray, rank: int = 1):
    split = make_split(labels, count, by_person=False, limit_pct=2.0)
    assert split.kind == SplitKind.CROSS_FIT
    found = cross_fit(candidates, chosen, split, metric="top-1", asked="point", limit_pct=2.0, rank=rank)
    assert found is not None
    return found


def test_the_luckiest_of_many_equal_candidates_is_certified_as_what_they_are_worth() -> None:
    """24 candidates that each lose 8 of 100 by chance: the best shows a drop that none of them has."""
    rng = np.random.default_rng(3)
    count, labels = 150, np.arange(150) % 2
    chosen_drops, certified_drops = [], []
    for _ in range(40):
        columns = [rng.random(count) > 0.08 for _ in range(24)]
        pairs = contenders(columns, labels)
        drops = [100.0 - 100.0 * hits.mean() for hits in columns]
        best = int(np.argmin(drops))
        chosen_drops.append(drops[best])
        certified_drops.append(fit(pairs, best, count, labels).drop_pct)
    assert np.mean(chosen_drops) < 5.0
    assert np.mean(certified_drops) == pytest.approx(8.0, abs=0.8)


def test_what_every_fold_chooses_alike_is_certified_with_all_the_data() -> None:
    labels = np.arange(100) % 2
    good, bad = np.ones(100, bool), np.ones(100, bool)
    good[7], bad[:30] = False, False
    found = fit(contenders([good, bad], labels), 0, 100, labels)
    assert (found.drop_pct, found.count, found.agreed, found.folds) == (pytest.approx(1.0), 100, 5, 5)
    assert found.low_pct <= 1.0 <= found.high_pct


def test_the_interval_is_wider_for_what_is_certified_after_another_failed() -> None:
    labels = np.arange(100) % 2
    hits = np.arange(100) % 20 > 0
    first, second = (fit(contenders([hits], labels), 0, 100, labels, rank=rank) for rank in (1, 2))
    assert second.high_pct > first.high_pct
    assert (first.level_pct, second.level_pct, corrected_level(2)) == (95.0, 97.5, 97.5)


def test_a_half_is_held_out_where_one_decision_weighs_little_in_it() -> None:
    labels = np.arange(200) % 2
    split = make_split(labels, 200, by_person=False, limit_pct=2.0)
    assert split.kind == SplitKind.HELD_OUT
    assert sorted([*split.choosing, *split.folds[0]]) == list(range(200))
    assert make_split(labels, 198, by_person=False, limit_pct=2.0).kind == SplitKind.CROSS_FIT
    assert make_split(labels, 50, by_person=False, limit_pct=2.0, holds_out=True).kind == SplitKind.HELD_OUT


def test_a_person_is_in_one_part_only_of_samples_and_of_listed_pairs() -> None:
    people = np.repeat(np.arange(120), 3)
    split = make_split(people, len(people), by_person=True, limit_pct=2.0)
    assert split.kind == SplitKind.HELD_OUT
    stacked = {"y": np.arange(len(people), dtype=np.float32)[:, None]}
    sides = [take_part(stacked, people, part, by_person=True)[1] for part in (split.choosing, split.folds[0])]
    assert not set(sides[0]) & set(sides[1])
    assert set(sides[0]) | set(sides[1]) == set(range(120))
    pairs = np.array([[0, 1, 1, 5, 5], [2, 3, 1, 6, 6], [0, 2, 0, 5, 6]])
    _, kept = take_part({"y": np.ones((4, 2))}, pairs, np.array([0]), by_person=True)
    assert kept is not None and kept.tolist() == [[0, 1, 1, 5, 5]]


def test_a_half_of_one_person_or_without_impostors_is_not_held_out() -> None:
    three = np.repeat(np.arange(3), 30)
    assert make_split(three, 90, by_person=True, limit_pct=2.0, holds_out=True).kind == SplitKind.NONE
    genuine = [[2 * person, 2 * person + 1, 1, person, person] for person in range(300)]
    pairs = np.array([*genuine, [0, 3, 0, 0, 1]])
    assert make_split(pairs, 600, by_person=True, limit_pct=2.0).kind == SplitKind.CROSS_FIT
    others = np.array([[2 * person, 2 * person + 3, 0, person, person + 1] for person in range(299)])
    assert make_split(np.concatenate([pairs, others]), 600, by_person=True, limit_pct=2.0).kind == SplitKind.HELD_OUT


def test_the_demos_data_are_cross_fitted_and_a_loss_of_one_pair_in_a_hundred_is_decided_by_the_point() -> None:
    people = np.repeat(np.arange(100), 2)
    split = make_split(people, 200, by_person=True, limit_pct=2.0)
    assert split.kind == SplitKind.CROSS_FIT
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(100, 64))
    base = (centres[people] + 0.1 * rng.normal(size=(200, 64))).astype(np.float32)
    worse = base.copy()
    worse[1] = -worse[1]
    drop = PEOPLE.drop({"y": base}, {"y": worse}, people, limit_pct=2.0)
    assert drop.measured is not None
    found = cross_fit([Contender(*drop.measured)], 0, split, metric="TAR", asked="auto", limit_pct=2.0, rank=1)
    assert found is not None
    assert (found.rule, found.count) == ("point", 100)
    assert found.drop_pct == pytest.approx(drop.drop_pct) == pytest.approx(1.0)
    assert (found.low_pct, found.high_pct) == (drop.low_pct, drop.high_pct), "nothing is lost by dividing"


def test_halves_share_no_sample_and_are_the_same_in_another_order(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    rows[39] = rows[0]
    sides = []
    for order in (np.arange(40), np.arange(40)[::-1]):
        np.savez(tmp_path / f"{order[0]}.npz", x=rows[order])
        dataset = open_dataset(tmp_path / f"{order[0]}.npz", (SPEC,))
        fitting, judging = halves(dataset, sample_digests(dataset))
        sides.append([{tuple(row) for batch in part.batches(7) for row in batch["x"]} for part in (fitting, judging)])
        assert fitting.count + judging.count == 40
        assert fitting.digest != judging.digest
    assert not sides[0][0] & sides[0][1]
    assert sides[0] == sides[1]
    assert abs(len(sides[0][0]) - len(sides[0][1])) <= 1
