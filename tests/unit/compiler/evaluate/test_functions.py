"""Metrics and samples of the user's own: what they may return, and how their failures are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.errors import DataError
from compiler.evaluate import Task, find_task, open_dataset
from compiler.fleet.data import Evaluation
from compiler.model.spec import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 2))
OUTPUTS = {"y": np.array([[0, 1], [1, 0], [0, 1]], np.float32)}
LABELS = np.array([1, 0, 0])


def write(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text("import numpy as np\n\n\n" + body)
    return name


def metric(folder: Path, name: str, body: str) -> Task:
    spec = f"{write(folder, name, body)}:metric"
    return find_task(Evaluation(task=spec, path=folder / "data.npz"))


def test_one_value_per_sample_is_averaged(tmp_path: Path) -> None:
    body = "def metric(outputs, labels):\n    return 100.0 * (outputs['y'].argmax(1) == labels)\n"
    score = metric(tmp_path, "own_per_sample", body).score(OUTPUTS, LABELS)
    assert (score.metric, score.value_pct, score.count) == ("metric", pytest.approx(200 / 3), 3)
    assert score.low_pct < score.value_pct < score.high_pct


def test_one_number_is_resampled_and_the_reference_is_given_to_who_takes_it(tmp_path: Path) -> None:
    body = "def metric(outputs, labels, reference):\n    return 100 - 50 * abs(outputs['y'] - reference['y']).mean()\n"
    drop = metric(tmp_path, "own_scalar", body).drop(OUTPUTS, {"y": OUTPUTS["y"] + 1}, None)
    assert drop.drop_pct == drop.low_pct == drop.high_pct == 50


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("own_raises", "raise RuntimeError('no such key')", "raised RuntimeError: no such key"),
        ("own_none", "return None", "'None', which is no finite number"),
        ("own_nan", "return float('nan')", "no finite number"),
        ("own_text", "return 'good'", "'good', which is no finite number"),
        ("own_short", "return [1.0, 2.0]", "no finite number"),
    ],
)
def test_a_metric_that_fails_is_named(tmp_path: Path, name: str, line: str, said: str) -> None:
    with pytest.raises(DataError, match=f"{name}:metric: .*{said}"):
        metric(tmp_path, name, f"def metric(outputs, labels):\n    {line}\n").score(OUTPUTS, LABELS)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere_to_be_found:f", "cannot be imported: ModuleNotFoundError"),
        ("own_broken:f", "SyntaxError"),
        ("json:f", "no function"),
    ],
)
def test_a_function_that_cannot_be_found_is_named(tmp_path: Path, spec: str, said: str) -> None:
    write(tmp_path, "own_broken", "def f(:\n")
    with pytest.raises(DataError, match=said):
        find_task(Evaluation(task=spec, path=tmp_path / "data.npz"))


def samples(folder: Path, name: str, body: str) -> Path:
    return folder / f"{write(folder, name, body)}:samples"


def test_samples_of_a_function_are_read_again_each_time(tmp_path: Path) -> None:
    body = "def samples():\n    for n in range(5):\n        yield np.full(2, n, np.float32), n % 2\n"
    dataset = open_dataset(samples(tmp_path, "own_samples", body), (SPEC,), labelled=True)
    assert dataset.count == 5 and dataset.labels is not None and dataset.labels.tolist() == [0, 1, 0, 1, 0]
    for _ in range(2):
        batches = list(dataset.batches(2))
        assert [batch["x"][:, 0].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert len(dataset.digest) == 64


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("own_empty", "return []", "gives no samples"),
        ("own_number", "return 3", "returns int, which cannot be iterated"),
        ("own_fails", "yield np.zeros(2, np.float32); raise ValueError('disk')", "raised ValueError: disk"),
        ("own_double", "yield np.zeros(2)", "float64, the model takes float32"),
        ("own_shape", "yield np.zeros(3, np.float32)", "does not fit the model's"),
        ("own_not", "yield np.full(2, np.nan, np.float32)", "holds NaN"),
        ("own_bare", "yield np.zeros(2, np.float32)", "samples without labels"),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path: Path, name: str, line: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(samples(tmp_path, name, f"def samples():\n    {line}\n"), (SPEC,), labelled=True)
