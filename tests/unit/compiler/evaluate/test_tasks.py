"""Metrics on outputs whose answers are known, their intervals, and what cannot be scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import DataError, InternalError, InvalidModel
from compiler.evaluate import Dataset, Task, find_task
from compiler.evaluate.task import choose_rule
from compiler.fleet.data import Evaluation
from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 2))


def task(name: str, **options: object) -> Task:
    return find_task(Evaluation(task=name, path=Path(), **options))  # type: ignore[arg-type]


def dataset(labels: Array | None) -> Dataset:
    return Dataset(0 if labels is None else len(labels), "set", "", (SPEC,), lambda: (), labels)


def faces(people: int, each: int, noise: float, seed: int = 0) -> tuple[dict[str, Array], Array]:
    random = np.random.default_rng(seed)
    centres = np.repeat(random.normal(size=(people, 16)), each, axis=0)
    vectors = (centres + noise * random.normal(size=centres.shape)).astype(np.float32)
    return {"e": vectors}, np.repeat(np.arange(people), each)


def test_people_far_apart_are_told_apart_without_error() -> None:
    outputs = {"e": np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3]], np.float32)}
    score = task("verification").score(outputs, np.array(["a", "a", "b", "b"]))
    assert (score.metric, score.value_pct, score.count) == ("TAR@FAR=0.001", 100, 2)
    assert score.details["rank-1"] == score.details["balanced accuracy"] == 100 and score.details["EER"] == 0


def test_a_sample_nearer_to_another_person_lowers_rank_1() -> None:
    outputs = {"e": np.array([[1, 0], [0, 1], [0.1, 1], [0.2, 1]], np.float32)}
    assert task("verification").score(outputs, np.array(["a", "a", "b", "b"])).details["rank-1"] == 50


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 30), st.integers(2, 4), st.floats(0.1, 3), st.sampled_from([0.3, 0.05, 1e-3]), st.integers(0, 99))
def test_verification_equals_its_definition(people: int, each: int, noise: float, far: float, seed: int) -> None:
    outputs, labels = faces(people, each, noise, seed)
    unit = outputs["e"] / np.linalg.norm(outputs["e"], axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), k=1)
    similarity, same = (unit @ unit.T)[first, second], labels[first] == labels[second]
    genuine, impostor = similarity[same], np.sort(similarity[~same])
    score = task("verification", far=(far,)).score(outputs, labels)
    assert score.value_pct == pytest.approx(100 * np.mean(genuine > impostor[-1 - int(far * len(impostor))]))
    shares = [(np.mean(genuine >= t) + np.mean(impostor < t)) / 2 for t in np.concatenate([genuine, impostor])]
    assert score.details["balanced accuracy"] == pytest.approx(100 * max(shares))
    assert score.low_pct <= score.high_pct


def test_the_threshold_accepts_the_pairs_that_the_metric_counts_and_no_more_impostors() -> None:
    outputs, labels = faces(20, 3, 1.2)
    judge = task("verification", far=(0.02, 0.2))
    assert judge.threshold is not None and task("embedding").threshold is None
    threshold = judge.threshold(outputs, labels)
    unit = outputs["e"] / np.linalg.norm(outputs["e"], axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), k=1)
    accepted, same = (unit @ unit.T)[first, second] > threshold.similarity, labels[first] == labels[second]
    assert (threshold.far, threshold.impostor_pairs, threshold.people) == (0.02, int((~same).sum()), 20)
    assert 100 * accepted[same].mean() == pytest.approx(judge.score(outputs, labels).value_pct)
    assert 0 < accepted[~same].mean() <= 0.02


def test_a_bootstrap_that_draws_people_agrees_with_doing_it_by_hand() -> None:
    outputs, labels = faces(20, 3, 1.2)
    score = task("verification", far=(0.01,)).score(outputs, labels)
    random, values = np.random.default_rng(1), []
    unit = outputs["e"] / np.linalg.norm(outputs["e"], axis=1, keepdims=True)
    for _ in range(600):
        people = random.integers(0, 20, 20)
        rows = np.concatenate([np.flatnonzero(labels == person) for person in people])
        copy = np.repeat(np.arange(20), 3)
        first, second = np.triu_indices(len(rows), k=1)
        similarity = (unit[rows] @ unit[rows].T)[first, second]
        same, other = copy[first] == copy[second], labels[rows][first] != labels[rows][second]
        impostor = np.sort(similarity[other])
        values.append(100 * np.mean(similarity[same] > impostor[-1 - int(0.01 * len(impostor))]))
    low, high = np.percentile(values, [2.5, 97.5])
    assert score.low_pct == pytest.approx(low, abs=6) and score.high_pct == pytest.approx(high, abs=6)


def test_listed_pairs_are_compared_and_no_others() -> None:
    outputs = {"e": np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)}
    pairs = np.array([[0, 1, 1, 0, 0], [2, 3, 1, 2, 2], [0, 2, 0, 0, 2], [1, 3, 0, 0, 2]])
    score = task("verification", far=(0.5,)).score(outputs, pairs)
    assert (score.value_pct, score.count, score.details["impostor pairs"]) == (100, 2, 2)
    assert "rank-1" not in score.details
    with pytest.raises(DataError, match="not among the 4"):
        task("verification").score(outputs, np.array([[0, 9, 1, 0, 0], [0, 1, 0, 0, 1]]))


@pytest.mark.parametrize(
    ("labels", "said"),
    [(np.array(["a", "a"]), "only one person"), (np.array(["a", "b"]), "no person has two"), (None, "no labels")],
)
def test_labels_without_both_kinds_of_pairs_are_refused(labels: Array | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        task("verification").check(dataset(labels))


def test_people_with_one_sample_and_too_small_a_far_are_warned_of() -> None:
    alone, few = task("verification").check(dataset(np.array(["a", "a", "b"])))
    assert "1 of 2 people have one sample only" in alone and "of 2 impostor pairs is less than one pair" in few


def test_top_1_and_top_5_count_ranks() -> None:
    scores = np.tile(np.arange(10, 0, -1, dtype=np.float32), (4, 1))
    score = task("classification").score({"y": scores}, np.array([0, 1, 4, 5]))
    assert (score.value_pct, score.details["top-5"], score.count) == (25, 75, 4)


def test_names_are_the_outputs_in_order_or_as_the_file_of_classes_says(tmp_path: Path) -> None:
    outputs = {"y": np.eye(2, dtype=np.float32)}
    assert task("classification").score(outputs, np.array(["cat", "dog"])).value_pct == 100
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    named = task("classification", classes=tmp_path / "classes.txt")
    assert named.score(outputs, np.array(["cat", "dog"])).value_pct == 0
    with pytest.raises(DataError, match="not in `classes`: owl"):
        named.check(dataset(np.array(["cat", "owl"])))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 2]), "labels go from 0 to 2"),
        (np.array(["a", "a"]), "1 classes by name"),
        (np.array([0]), "1 labels for 2 samples"),
        (None, "no labels"),
    ],
)
def test_labels_that_do_not_match_the_model_are_refused(labels: Array | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        task("classification").score({"y": np.eye(2, dtype=np.float32)}, labels)


def test_one_class_is_no_evaluation() -> None:
    with pytest.raises(DataError, match="every sample shows one class"):
        task("classification").check(dataset(np.array([3, 3])))


def test_embedding_fidelity_is_the_mean_cosine_to_the_float_model() -> None:
    reference = {"e": np.array([[1, 0], [0, 2], [0, 0]], np.float32)}
    candidate = {"e": np.array([[2, 0], [2, 0], [0, 0]], np.float32)}
    drop = task("embedding").drop(reference, candidate, None, limit_pct=2)
    assert (drop.reference.value_pct, drop.candidate.value_pct) == (100, pytest.approx(200 / 3))
    assert drop.candidate.details["worst sample"] == 0
    with pytest.raises(InternalError):
        task("embedding").score(candidate, None)


def test_several_outputs_need_a_name_and_a_wrong_one_is_named() -> None:
    outputs = {"a": np.eye(2, dtype=np.float32), "b": np.eye(2, dtype=np.float32)}
    with pytest.raises(DataError, match="several outputs: a, b"):
        task("classification").score(outputs, np.array([0, 1]))
    with pytest.raises(DataError, match="no output 'c'; it has a, b"):
        task("classification", output="c").score(outputs, np.array([0, 1]))


def test_a_candidate_with_nan_scores_nothing_and_a_reference_with_nan_is_an_error() -> None:
    good, labels = faces(4, 2, 0.1)
    bad = {"e": good["e"].copy()}
    bad["e"][3, 0] = np.nan
    drop = task("verification").drop(good, bad, labels, limit_pct=2)
    assert (drop.candidate.value_pct, drop.judged_pct) == (0, drop.reference.value_pct)
    assert "NaN or infinity for 1 of 8 samples: 3" in drop.why
    with pytest.raises(InvalidModel, match="NaN or infinity"):
        task("verification").drop(bad, good, labels)


def test_a_small_set_is_judged_by_the_bound_and_a_large_one_by_the_point() -> None:
    before, labels = faces(30, 2, 0.8)
    after = {"e": before["e"] + 0.6 * np.random.default_rng(5).normal(size=before["e"].shape).astype(np.float32)}
    judge = task("verification", far=(0.01,))
    small, loose = (judge.drop(before, after, labels, limit_pct=limit) for limit in (2, 10))
    assert small.rule == "bound" and small.judged_pct == small.high_pct > small.drop_pct
    assert loose.rule == "point" and loose.judged_pct == loose.drop_pct
    asked = replace(judge, rule="point").drop(before, after, labels, limit_pct=2)
    assert asked.rule == "point" and "asks for" in asked.why


def test_the_bound_of_a_drop_without_an_interval_is_refused_and_not_taken_for_the_drop() -> None:
    with pytest.raises(DataError, match="judged by the bound of the drop, which has no interval") as refused:
        choose_rule("bound", 40, 2.0, float("nan"))
    assert "`rule: point`" in refused.value.remedy
    assert choose_rule("auto", 40, 2.0, float("nan"))[0] == "point"


def test_the_same_outputs_drop_by_nothing_on_every_resample() -> None:
    outputs, labels = faces(10, 2, 1)
    drop = task("verification").drop(outputs, outputs, labels, limit_pct=2)
    assert (drop.drop_pct, drop.low_pct, drop.high_pct) == (0, 0, 0)


def test_two_thousand_resamples_of_a_hundred_people_are_judged_in_two_seconds() -> None:
    import time

    outputs, labels = faces(100, 2, 1)
    start = time.process_time()
    task("verification").drop(outputs, {"e": outputs["e"] + np.float32(0.01)}, labels, limit_pct=2)
    assert time.process_time() - start < 2
