"""What a child process is asked and answers survives the border between the processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.artifact import Artifact, Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import BuildSettings
from compiler.errors import TargetNotFound
from compiler.evaluate.answers import Answered, Asked
from compiler.evaluate.judged import OutputPart
from compiler.model.decoder import CachePair, Decoder
from compiler.model.spec import TensorSpec
from compiler.target import (
    Array,
    Backend,
    CountsInstructions,
    DeviceType,
    HasNote,
    LayerTime,
    Range,
    ReportsPeakMemory,
    StaysLoaded,
    TimesLayers,
    TimesRuns,
    Tunable,
    WeighsRuns,
)
from compiler.target.isolate import ChildLimits
from compiler.target.request import (
    BorderWork,
    BuildAnswer,
    BuildRequest,
    BuildTask,
    EvaluateAnswer,
    EvaluateTask,
    ExecuteAnswer,
    ExecuteTask,
    FootprintAnswer,
    FootprintTask,
    GenerateAnswer,
    GenerateTask,
    KernelsTask,
    LayerTimesAnswer,
    LayerTimesTask,
    RaceAnswer,
    RaceTask,
    RaceUntil,
    Task,
    TrialAnswer,
    TrialQuestion,
    TuneHello,
    TuneTask,
    ask,
    task_of,
)
from compiler.target.worker import WORK

ARTIFACT = Artifact(
    Path("/built"),
    "reference",
    "fp32",
    (TensorSpec("x", "float32", ("batch", 3)),),
    (TensorSpec("y", "float32", (1, 3)),),
    ("payload/model.onnx",),
    {"onnxruntime": "1"},
    {"threads": 4, "names": ["a"]},
    {"payload/model.onnx": "it is dated"},
)
SETTINGS = BuildSettings("int8", {"batch": Range(1, 2, 4)}, 4, {"abc": {"tile": [4, 8]}}, 1000)
PLAN = BuildRequest(SETTINGS, Path("/cache"))
ON = BorderWork(Path("/border.onnx"), Path("/profile.yaml"), PLAN)
KERNEL = Tunable("conv", "abc", ({"tile": 4}, {"tile": 8}), 2, 0.5)
DECODER = Decoder("ids", "logits", (CachePair("past", "present"),), past="past")
TASKS: tuple[Task, ...] = (
    BuildTask(ON, Path("/work")),
    KernelsTask(ON),
    TuneTask(ON, Backend("rpc", "lab:9190", "pi"), 3, 4),
    ExecuteTask(ARTIFACT, (Path("/in"),), (Path("/out"),), 5, Path("/in")),
    EvaluateTask(ARTIFACT, Path("/in"), Path("/out"), 8, OutputPart("logits", 65)),
    FootprintTask(ARTIFACT, Path("/in")),
    GenerateTask(ARTIFACT, DECODER, (Asked((1, 2, 3), 8, 16, 64, (0,)),)),
    LayerTimesTask(ARTIFACT, Path("/in")),
    RaceTask((ARTIFACT, ARTIFACT), (Path("/a"), Path("/b")), RaceUntil(5, 60, 12.0, 0.02), 2),
)
ANSWERS = (
    BuildAnswer(ARTIFACT),
    TuneHello(Evidence.HOST, DeviceType("N100", ("avx2",), 4, (32, None, 6144))),
    TrialQuestion(KERNEL, {"tile": 8}),
    TrialAnswer((1.0, 2.0)),
    TrialAnswer(error={"what": "no"}),
    ExecuteAnswer(Evidence.EMULATOR, "", ((1.0,), ()), 12, (1 << 20,)),
    EvaluateAnswer(Evidence.HOST),
    FootprintAnswer(Evidence.HOST, 1 << 20),
    GenerateAnswer(Evidence.HOST, (Answered((5, 6), 12.5, (3.0,)),)),
    LayerTimesAnswer(Evidence.HOST, (LayerTime(("a", "b"), 2.5, "fused"),)),
    RaceAnswer(((1.0, 2.0), (3.0, 4.0)), ((1.0, 1.0), (3.0, 3.0)), "stolen time"),
)


@pytest.mark.parametrize("task", TASKS, ids=[task.work for task in TASKS])
def test_a_task_is_read_as_it_was_written(task: Task) -> None:
    assert task_of(json.dumps(to_json(task))) == task


@pytest.mark.parametrize("answer", ANSWERS, ids=[type(answer).__name__ for answer in ANSWERS])
def test_an_answer_is_read_as_it_was_written(answer: object) -> None:
    assert parse(type(answer), json.loads(json.dumps(to_json(answer)))) == answer


def test_every_kind_of_task_is_done_by_something() -> None:
    assert set(WORK) == {type(task) for task in TASKS}


def test_the_error_of_a_task_comes_back_in_its_own_class_with_the_place(tmp_path: Path) -> None:
    missing = Artifact(tmp_path, "no_such_target", "fp32", (), (), (), {})
    with pytest.raises(TargetNotFound, match="no_such_target") as raised:
        ask(
            FootprintTask(missing, tmp_path),
            FootprintAnswer,
            folder=tmp_path,
            child_limits=ChildLimits(),
            where="kiosk: memory",
        )
    assert raised.value.where == "kiosk: memory"


class Full:
    """A runner that offers everything."""

    note = "speed is this machine's"

    def latencies_ms(self, inputs: object, repeat: int) -> list[float]:
        return [1.0] * repeat

    def count_instructions(self, inputs: object) -> int:
        return 1

    def peak_memory_bytes(self, inputs: object) -> int:
        return 1

    def run_weighed(self, inputs: object) -> tuple[dict[str, Array], int]:
        return {}, 1

    def layer_times(self, inputs: object) -> list[LayerTime]:
        return []

    def stay_loaded(self) -> Full:
        return self


@pytest.mark.parametrize(
    "offer", [HasNote, TimesRuns, CountsInstructions, ReportsPeakMemory, WeighsRuns, TimesLayers, StaysLoaded]
)
def test_what_a_runner_offers_is_told_by_its_members(offer: type) -> None:
    assert isinstance(Full(), offer)
    assert not isinstance(object(), offer)
