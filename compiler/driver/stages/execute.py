"""An artifact run in a child process: outputs, times, and what an emulator tells beside them.

What an emulator runs takes long and gives the same each time, so one run of it is kept in the store for all who ask:
parity takes its outputs, and the gates on memory what it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import Artifact, Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.driver.stages.run import Stages
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Arrays, arrays_digest, load_arrays, write_arrays
from compiler.store import StageName, read_result, write_result
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import ChildLimits
from compiler.target.request import ExecuteAnswer, ExecuteTask, ask

_ANSWER, _OUTPUTS = "run.json", "outputs.npz"


@dataclass(frozen=True)
class Execution:
    """What running an artifact gave.

    Args:
        evidence: Where it ran.
        note: What the runner says about how far the run stands for the device.
        outputs: Output name → array, for every point.
        latencies_ms: Milliseconds of every timed run, for every point.
        instructions: Guest instructions of one inference of the first point; None where nothing counts them.
        peak_bytes: Peak memory of the emulated program, for every point; none where no run is weighed.
    """

    evidence: Evidence
    note: str
    outputs: tuple[Arrays, ...]
    latencies_ms: tuple[tuple[float, ...], ...]
    instructions: int | None
    peak_bytes: tuple[int, ...] = ()


def execute(
    artifact: Artifact,
    inputs: Sequence[Arrays],
    *,
    repeat: int,
    instructions: bool,
    where: str,
    child_limits: ChildLimits,
    repeat_s: float | None = None,
) -> Execution:
    """Runs an artifact in a child process; with `instructions`, those of the first inputs are counted where they can.

    With `repeat_s`, the timed runs of one set of inputs end after about so many seconds.

    Raises:
        TargetUnavailable: It cannot run on this machine.
        ToolchainFailed: It crashed, hung or used too much memory.
    """
    with scratch_folder() as folder:
        for index, arrays in enumerate(inputs):
            write_arrays(folder / f"in{index}.npz", arrays)
        task = ExecuteTask(
            artifact=artifact,
            inputs=tuple(folder / f"in{index}.npz" for index in range(len(inputs))),
            outputs=tuple(folder / f"out{index}.npz" for index in range(len(inputs))),
            repeat=repeat,
            counted=folder / "in0.npz" if instructions else None,
            repeat_s=repeat_s,
        )
        answer = ask(task, ExecuteAnswer, folder=folder, child_limits=child_limits, where=where)
        outputs = tuple(load_arrays(path) for path in task.outputs)
    return Execution(answer.evidence, answer.note, outputs, answer.latencies_ms, answer.instructions, answer.peak_bytes)


def count_instructions(artifact: Artifact, inputs: Arrays, *, where: str, child_limits: ChildLimits) -> int | None:
    """Guest instructions of one inference, and nothing else of it; None where nothing counts them.

    Raises:
        TargetUnavailable, ToolchainFailed: As of `execute`.
    """
    with scratch_folder() as folder:
        write_arrays(folder / "in.npz", inputs)
        task = ExecuteTask(artifact, (), (), counted=folder / "in.npz")
        return ask(task, ExecuteAnswer, folder=folder, child_limits=child_limits, where=where).instructions


def emulated_run(
    artifact: Artifact, digest: str, inputs: Arrays, *, where: str, stages: Stages, child_limits: ChildLimits
) -> Execution:
    """One run of an artifact that an emulator runs here at best, from the store where it was run before.

    Args:
        artifact: What was built.
        digest: Digest of the build stage.
        inputs: Of the run.
        where: Device and step, for messages.
        stages: Where it is run.
        child_limits: What the child process may use.

    Raises:
        TargetUnavailable, ToolchainFailed: As of `execute`.
    """

    def make(folder: Path) -> None:
        run = execute(artifact, [inputs], repeat=0, instructions=False, where=where, child_limits=child_limits)
        write_arrays(folder / _OUTPUTS, run.outputs[0])
        write_result(folder, _ANSWER, to_json(ExecuteAnswer(run.evidence, run.note, (), None, run.peak_bytes)))

    entry = stages.run(StageName.VERIFY, make, build=digest, inputs=arrays_digest(inputs), host=host_fingerprint())
    answer = parse(ExecuteAnswer, read_result(entry, _ANSWER))
    return Execution(answer.evidence, answer.note, (load_arrays(entry.files / _OUTPUTS),), (), None, answer.peak_bytes)
