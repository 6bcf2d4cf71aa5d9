"""Metrics and samples of the user's own: what they may return, and how their failures are told."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from compiler.errors import DataError
from compiler.evaluate import Task, custom, find_task, open_dataset
from compiler.evaluate.function import LIMITS, ask, open_function
from compiler.fleet.data import Evaluation
from compiler.model.process import ChildLimits
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


NONSENSE = [
    ("own_crash", "os.kill(os.getpid(), 11)", {}, "process crashed with signal SIGSEGV"),
    ("own_abort", "os._exit(3)", {}, "process ended with exit code 3 and no result"),
    ("own_exit", "sys.exit('enough')", {}, "raised SystemExit: enough"),
    ("own_hang", "time.sleep(600)", {"timeout_s": 3.0}, "did not finish within 3 s"),
    (
        "own_eat",
        "eaten = bytearray(os.urandom(1 << 20) * 900); time.sleep(60)",
        {"memory_mib": 600},
        "limit of 600 MiB",
    ),
    ("own_close", "os.closerange(3, 999); time.sleep(1)", {}, "no result|OSError"),
    (
        "own_noise",
        "[os.write(fd, b'~' * 64) for fd in range(3, 999) if is_pipe(fd)]; os._exit(0)",
        {},
        "cannot be read",
    ),
    ("own_fork", "os.fork() or os._exit(0); sys.exit('child and parent')", {}, "raised SystemExit"),
]
HEAD = """import os, stat, sys, time


def is_pipe(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


"""


@pytest.mark.parametrize(("name", "line", "limits", "said"), NONSENSE)
def test_whatever_a_function_does_to_its_process_is_an_error_of_the_data(
    tmp_path: Path, name: str, line: str, limits: dict[str, float], said: str
) -> None:
    body = HEAD + f"def samples():\n    {line}\n\n\ndef metric(outputs, labels):\n    {line}\n"
    module = write(tmp_path, name, body)
    bounds = ChildLimits(**{"timeout_s": 60.0, **limits})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said) as raised:
        open_function(f"{module}:samples", tmp_path, (SPEC,), labelled=None, count=None, child_limits=bounds)
    assert raised.value.where == f"{module}:samples"
    with pytest.raises(DataError, match=said):
        custom.measure(OUTPUTS, LABELS, None, spec=f"{module}:metric", folder=tmp_path, child_limits=bounds)


def test_the_code_of_a_fleet_file_never_runs_in_this_process(tmp_path: Path) -> None:
    body = (
        "import os\nopen('PIDS', 'a').write(f'{os.getpid()}\\n')\n\n\n"
        "def samples():\n    yield np.zeros(2, np.float32), 0\n\n\ndef metric(outputs, labels):\n    return 50.0\n"
    ).replace("PIDS", str(tmp_path / "pids"))
    task = metric(tmp_path, "own_pids", body)
    dataset = open_dataset(tmp_path / "own_pids:samples", (SPEC,), labelled=True)
    assert len(list(dataset.batches(1))) == 1
    assert task.score(OUTPUTS, LABELS).value_pct == 50.0
    pids = (tmp_path / "pids").read_text().split()
    assert str(os.getpid()) not in pids
    assert "own_pids" not in sys.modules
    # one to see that the metric is there, two to read the samples, one for the score, one for all of its resamples
    assert len(pids) == len({*pids}) == 5


def test_samples_that_nobody_reads_to_the_end_leave_no_process(tmp_path: Path) -> None:
    body = "def samples():\n    while True:\n        yield np.zeros(2, np.float32), 0\n"
    module = write(tmp_path, "own_endless", body)
    before = {*psutil.Process().children(recursive=True)}  # another test may have started what lives as long as we do
    dataset = open_function(f"{module}:samples", tmp_path, (SPEC,), labelled=None, count=10_000)
    batches = dataset.batches(4)
    assert len(next(batches)["x"]) == 4
    del batches
    gc.collect()
    assert not {*psutil.Process().children(recursive=True)} - before


def test_labels_and_arrays_of_every_kind_come_through(tmp_path: Path) -> None:
    body = """def samples():
    yield {"x": np.float32([1, 2])}, "Anna"
    yield {"x": np.float32([[3, 4]]), "unused": [1]}, np.str_("Bert")
"""
    dataset = open_dataset(samples(tmp_path, "own_names", body), (SPEC,), labelled=True)
    assert dataset.labels is not None and dataset.labels.tolist() == ["Anna", "Bert"]
    assert [batch["x"].tolist() for batch in dataset.batches(8)] == [[[1, 2], [3, 4]]]
    body = "def samples():\n    yield np.zeros(2, np.float32), np.array([0, 1, 1])\n"
    dataset = open_dataset(samples(tmp_path, "own_multi", body), (SPEC,), labelled=True)
    assert dataset.labels is not None and dataset.labels.tolist() == [[0, 1, 1]]
    body = "def samples():\n    yield {}, 0\n"
    with pytest.raises(DataError, match="sample 1: there is no array for 'x'"):
        open_dataset(samples(tmp_path, "own_nothing", body), (SPEC,), labelled=True)
    body = "def samples():\n    yield np.zeros(2, np.float32), object()\n"
    with pytest.raises(DataError, match="sample 1: the label is of type object"):
        open_dataset(samples(tmp_path, "own_object", body), (SPEC,), labelled=True)


def test_a_function_may_fill_one_buffer_again_and_again(tmp_path: Path) -> None:
    body = """def samples():
    buffer = np.zeros(2, np.float32)
    for n in range(3):
        buffer[:] = n
        yield buffer
"""
    dataset = open_dataset(samples(tmp_path, "own_buffer", body), (SPEC,), labelled=False)
    assert [batch["x"][:, 0].tolist() for batch in dataset.batches(8)] == [[0, 1, 2]]


def test_a_large_set_is_read_in_a_few_frames_and_not_sample_by_sample(tmp_path: Path) -> None:
    body = "def samples():\n    for n in range(20000):\n        yield np.full(2, n, np.float32), n\n"
    module = write(tmp_path, "own_large", body)
    frames = list(ask("samples", f"{module}:samples", tmp_path, child_limits=LIMITS))
    assert len(frames) <= 3 and sum(len(header["labels"]) for header, _ in frames) == 20000
