"""What a child process is asked, and what it answers: a pair of frozen types for each kind of work.

Both cross the border between the processes as JSON, written and read by the types themselves. A task says in `work`
which kind it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from compiler.artifact import Artifact, Evidence, artifact_from_dict, artifact_to_dict
from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import BuildSettings
from compiler.evaluate.answers import Answered, Asked
from compiler.evaluate.judged import OutputPart
from compiler.fleet.profile import HardwareProfile, to_yaml
from compiler.model.decoder import Decoder
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import ChildLimits, fork_server, run_child
from compiler.target.runner import LayerTime
from compiler.target.target import Backend, Prepares, TargetPlan, find_target
from compiler.tune import Choice, DeviceType, Tunable

A = TypeVar("A")

ArtifactWithRoot: TypeAlias = Annotated[
    Artifact,
    PlainSerializer(lambda artifact: {**artifact_to_dict(artifact), "root": str(artifact.root)}),
    PlainValidator(lambda value: value if isinstance(value, Artifact) else artifact_from_dict(value)),
]
"""An artifact with its folder, which its description in a manifest leaves out."""


@dataclass(frozen=True)
class BuildRequest:
    """What a child process is told of the plan: the settings that the manifest keeps, and where downloads are kept."""

    settings: BuildSettings
    cache_dir: Path

    @classmethod
    def of(cls, plan: TargetPlan) -> BuildRequest:
        """What the build of a device's plan is told."""
        return cls(settings_of(plan), plan.cache_dir)


def settings_of(plan: TargetPlan) -> BuildSettings:
    """All of a target's plan but its options, which come from the profile, and the place of its caches."""
    return BuildSettings(plan.precision, plan.dims, plan.threads, plan.schedule, plan.payload_bytes)


@dataclass(frozen=True)
class BorderWork:
    """A border model, and what it is worked on for; paths are absolute.

    Args:
        border: The ONNX file.
        profile: A profile file that the parent wrote.
        plan: What of the plan the target may depend on.
    """

    border: Path
    profile: Path
    plan: BuildRequest


@dataclass(frozen=True)
class BuildTask:
    """Build a border model into `workdir`. The answer is a `BuildAnswer`."""

    on: BorderWork
    workdir: Path
    work: Literal["build"] = "build"


@dataclass(frozen=True)
class KernelsTask:
    """List the kernels of a border model that have choices. The answer is a tuple of `Tunable`."""

    on: BorderWork
    work: Literal["kernels"] = "kernels"


@dataclass(frozen=True)
class TuneTask:
    """Measure trials, one for each `TrialQuestion` that comes through a pipe, until the parent closes it.

    Args:
        on: The border model whose kernels are measured.
        backend: Where.
        questions_fd: The pipe that questions come through, one JSON line each.
        answers_fd: The pipe for a `TuneHello` and then for a `TrialAnswer` to each question.
    """

    on: BorderWork
    backend: Backend
    questions_fd: int
    answers_fd: int
    work: Literal["measure"] = "measure"


@dataclass(frozen=True)
class ExecuteTask:
    """Run an artifact on sets of inputs.

    Args:
        artifact: The artifact.
        inputs: A `.npz` per set.
        outputs: Where the outputs of each are written.
        repeat: How often each is run again and timed.
        repeat_s: Time that the timed runs of one set may take together; a model whose runs take longer has fewer.
        counted: Inputs of one more inference whose instructions are counted, by a runner under an emulator that can;
            None counts nothing.
    """

    artifact: ArtifactWithRoot
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    repeat: int = 0
    counted: Path | None = None
    repeat_s: float | None = None
    work: Literal["execute"] = "execute"


@dataclass(frozen=True)
class EvaluateTask:
    """Run an artifact on stacked samples, `batch` at a time, and write its outputs stacked alike.

    Args:
        artifact: The artifact.
        inputs: The samples.
        outputs: Where the outputs are written.
        batch: Samples of one run.
        judged: The part of the outputs that is written; None writes all.
    """

    artifact: ArtifactWithRoot
    inputs: Path
    outputs: Path
    batch: int
    judged: OutputPart | None = None
    work: Literal["evaluate"] = "evaluate"


@dataclass(frozen=True)
class FootprintTask:
    """Run an artifact once, or only load it where there are no inputs, and tell the peak memory that it took.

    Where its runner keeps a cache inside, it answers a prompt in place of the run, as it does on the device.
    """

    artifact: ArtifactWithRoot
    inputs: Path
    decoder: Decoder | None = None
    asked: Asked | None = None
    work: Literal["footprint"] = "footprint"


@dataclass(frozen=True)
class GenerateTask:
    """Answer prompts with a decoder, one after another."""

    artifact: ArtifactWithRoot
    decoder: Decoder
    asked: tuple[Asked, ...]
    work: Literal["generate"] = "generate"


@dataclass(frozen=True)
class LayerTimesTask:
    """Run an artifact and tell the time of its kernels, where its runner can."""

    artifact: ArtifactWithRoot
    inputs: Path
    work: Literal["layer-times"] = "layer-times"


@dataclass(frozen=True)
class RaceUntil:
    """When a race of two artifacts ends.

    Args:
        least_pairs: Pairs of blocks in any case.
        most_pairs: Pairs at most.
        budget_s: Seconds after which no pair is begun.
        half_width: Half of the ratio's 95 % interval, relative, that is narrow enough.
    """

    least_pairs: int
    most_pairs: int
    budget_s: float
    half_width: float


class RaceClock(StrEnum):
    """What of two artifacts is compared.

    `wall`: how long a run takes. `processor`: how much processor time it takes when there is one processor for all of
    its threads: other work on the machine delays a run, and hardly changes that.
    """

    WALL = "wall"
    PROCESSOR = "processor"


@dataclass(frozen=True)
class RaceTask:
    """Run two artifacts in turn, block by block, so that both see the same machine; `threads` is how many they use."""

    artifacts: tuple[ArtifactWithRoot, ...]
    inputs: tuple[Path, ...]
    until: RaceUntil
    threads: int
    clock: RaceClock = RaceClock.WALL
    work: Literal["race"] = "race"


@dataclass(frozen=True)
class BuildAnswer:
    """What was built."""

    artifact: ArtifactWithRoot


@dataclass(frozen=True)
class TuneHello:
    """The first line of a child that measures trials: where its figures are from, and the device that runs them."""

    evidence: Evidence
    device: DeviceType


@dataclass(frozen=True)
class TrialQuestion:
    """One trial: a kernel, and the choice that it is built with."""

    kernel: Tunable
    choice: Choice


@dataclass(frozen=True)
class TrialAnswer:
    """The figures of a trial, or the error that it ended with, as `CompilerError.to_dict` gives it."""

    values: tuple[float, ...] = ()
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class ExecuteAnswer:
    """What running an artifact gave, beside its outputs.

    Args:
        evidence: Where it ran.
        note: What the runner says about how far the run stands for the device.
        latencies_ms: Milliseconds of every timed run, for every set of inputs; none under an emulator.
        instructions: Guest instructions of one inference; None where nothing counts them.
        peak_bytes: Peak resident memory of the emulated program, for every set of inputs; none where no run is weighed.
    """

    evidence: Evidence
    note: str
    latencies_ms: tuple[tuple[float, ...], ...]
    instructions: int | None
    peak_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class EvaluateAnswer:
    """Where an artifact ran on a data set."""

    evidence: Evidence


@dataclass(frozen=True)
class FootprintAnswer:
    """Peak resident memory of one run, in bytes, and where it ran."""

    evidence: Evidence
    peak_bytes: int


@dataclass(frozen=True)
class GenerateAnswer:
    """Where prompts were answered, and the answers in their order."""

    evidence: Evidence
    answers: tuple[Answered, ...]


@dataclass(frozen=True)
class LayerTimesAnswer:
    """Time of every kernel, and where it ran; none where the runner cannot tell."""

    evidence: Evidence
    layers: tuple[LayerTime, ...]


@dataclass(frozen=True)
class RaceAnswer:
    """Per artifact, the median and the fastest run of every block, in milliseconds; and what disturbed them."""

    medians_ms: tuple[tuple[float, ...], ...]
    fastest_ms: tuple[tuple[float, ...], ...]
    disturbed: str = ""


Task: TypeAlias = (
    BuildTask
    | KernelsTask
    | TuneTask
    | ExecuteTask
    | EvaluateTask
    | FootprintTask
    | GenerateTask
    | LayerTimesTask
    | RaceTask
)


@cache
def _tasks() -> TypeAdapter[Task]:
    return TypeAdapter(Annotated[Task, Field(discriminator="work")])


def task_of(text: str) -> Task:
    """The task that a parent wrote. Raises pydantic.ValidationError (a ValueError) where it is none."""
    return _tasks().validate_json(text)


def ask(task: Task, answer: type[A], *, folder: Path, child_limits: ChildLimits, where: str, builds_for: str = "") -> A:
    """Has a child process do a task.

    Args:
        task: What to do.
        answer: The type of its answer.
        folder: Scratch folder of this child; must exist.
        child_limits: When to kill it.
        where: Device and step, for messages.
        builds_for: The target whose toolchain the task needs, if it needs one.

    Raises:
        ToolchainFailed: The child crashed, hung, or used too much memory.
        CompilerError: Whatever the work raised, as the same class.
    """
    arguments: dict[str, Any] = to_json(task)
    work = str(arguments.pop("work"))
    forks = None if _is_measured(task) else fork_server(_prepared(builds_for))
    value = run_child(work, arguments, folder=folder, child_limits=child_limits, where=where, forks=forks)
    return parse(answer, value)


def _is_measured(task: Task) -> bool:
    """Whether the time or the memory of the process that does it is a figure."""
    match task:
        case FootprintTask() | GenerateTask() | LayerTimesTask() | RaceTask():
            return True
        case ExecuteTask(repeat=repeat):
            return repeat > 0
        case _:
            return False


def _prepared(target: str) -> str:
    """The target, if its toolchain may be imported before a process is forked for it."""
    return target if target and isinstance(find_target(target), Prepares) else ""


def build_in_child(
    border: Path,
    request: BuildRequest,
    profile: HardwareProfile,
    *,
    workdir: Path,
    child_limits: ChildLimits,
    where: str,
) -> Artifact:
    """Builds in a child process, whose own files stay outside `workdir`.

    Raises:
        CompilerError: Whatever the target raised, or ToolchainFailed if its process ended badly.
    """
    with scratch_folder() as scratch:
        task = BuildTask(border_work(border, request, profile, scratch), workdir.absolute())
        answer = ask(
            task,
            BuildAnswer,
            folder=scratch,
            child_limits=child_limits,
            where=where,
            builds_for=profile.target,
        )
    return replace(answer.artifact, root=workdir)


def border_work(border: Path, request: BuildRequest, profile: HardwareProfile, folder: Path) -> BorderWork:
    """What a child process works on; the profile is written into its folder."""
    (folder / "profile.yaml").write_text(to_yaml(profile), encoding="utf-8")
    plan = replace(request, cache_dir=request.cache_dir.absolute())
    return BorderWork(border.absolute(), (folder / "profile.yaml").absolute(), plan)
