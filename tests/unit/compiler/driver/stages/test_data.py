"""Accuracy is not judged on what the model was fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.driver.stages.data import LEAST_SPLIT, _divided, _shared
from compiler.evaluate import Dataset, open_dataset, sample_digests
from compiler.model.spec import TensorSpec

SPEC = TensorSpec("x", "float32", ("N", 3))


def dataset(folder: Path, name: str, rows: np.ndarray) -> Dataset:
    np.savez(folder / f"{name}.npz", x=rows.astype(np.float32))
    return open_dataset(folder / f"{name}.npz", (SPEC,))


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def test_without_an_evaluation_one_half_fits_and_the_other_judges(tmp_path: Path) -> None:
    parts = _divided(dataset(tmp_path, "all", rows(LEAST_SPLIT + 7)))
    assert not isinstance(parts, str)
    fitting, judging = (set(sample_digests(part)) for part in parts)
    assert not fitting & judging
    assert len(fitting | judging) == LEAST_SPLIT + 7
    assert "half that fits" in parts[0].origin and "half that judges" in parts[1].origin


@pytest.mark.parametrize("repeats", [1, 4])
def test_too_few_distinct_samples_are_not_divided_and_the_reason_names_both_numbers(
    tmp_path: Path, repeats: int
) -> None:
    why = _divided(dataset(tmp_path, "few", np.tile(rows(LEAST_SPLIT - 1), (repeats, 1))))
    assert isinstance(why, str)
    assert f"{LEAST_SPLIT - 1} distinct calibration samples are fewer than {LEAST_SPLIT}" in why
    assert "add an evaluation" in why


def test_complete_inputs_are_not_divided(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=np.zeros((40, 5, 3), np.float32))
    why = _divided(open_dataset(tmp_path / "whole.npz", (SPEC,)))
    assert isinstance(why, str) and "complete inputs" in why


def test_samples_of_both_sets_are_counted_whatever_their_order(tmp_path: Path) -> None:
    calibration, evaluation = rows(10), rows(20, seed=1)
    assert _shared(dataset(tmp_path, "c", calibration), dataset(tmp_path, "e", evaluation)) == ()
    evaluation[[3, 17]] = calibration[[9, 0]]
    (warning,) = _shared(dataset(tmp_path, "c", calibration), dataset(tmp_path, "e", evaluation))
    assert warning.startswith("2 of 20 evaluation samples are calibration samples too")
