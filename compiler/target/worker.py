"""The child's side of `compiler.target.isolate`: loads one target, does one piece of work, writes one response."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from compiler.artifact import Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.errors import CompilerError, InternalError, TargetUnavailable, ToolchainFailed
from compiler.fleet.profile import HardwareProfile, load_profile, validate_options
from compiler.model.child import follow_parent
from compiler.model.numerics import load_arrays, write_arrays
from compiler.store.atomic import write_atomic
from compiler.target.race import race
from compiler.target.request import (
    BorderWork,
    BuildAnswer,
    BuildTask,
    EvaluateTask,
    ExecuteAnswer,
    ExecuteTask,
    FootprintTask,
    GenerateTask,
    KernelsTask,
    LayerTimesTask,
    RaceTask,
    TrialAnswer,
    TrialQuestion,
    TuneHello,
    TuneTask,
    task_of,
)
from compiler.target.runner import CountsInstructions, HasNote, Runner, WeighsRuns
from compiler.target.target import Measurer, Prepares, Target, TargetPlan, Tunes, find_target
from compiler.target.worker_generate import generate
from compiler.target.worker_measure import evaluate, footprint, time_layers, times_ms
from compiler.tune import Tunable

LEAST_TIMED = 5
"""Timed runs of a set in any case: fewer have no percentiles to speak of."""


def planned(on: BorderWork) -> tuple[HardwareProfile, Target, TargetPlan]:
    """The profile, the target and its part of the plan that a task names. Raises TargetUnavailable as `check`."""
    profile = load_profile(on.profile)
    target = find_target(profile.target)
    target.check(profile)
    plan = TargetPlan(
        precision=on.plan.settings.precision,
        options=validate_options(target.Options, profile),
        dims=on.plan.settings.dims,
        threads=on.plan.settings.threads,
        schedule=on.plan.settings.schedule,
        payload_bytes=on.plan.settings.payload_bytes,
        cache_dir=on.plan.cache_dir,
    )
    return profile, target, plan


def build(task: BuildTask) -> BuildAnswer:
    """Builds a border model."""
    import onnx_ir as ir

    profile, target, plan = planned(task.on)
    return BuildAnswer(target.build(ir.load(task.on.border), plan, profile, workdir=task.workdir))


def kernels(task: KernelsTask) -> tuple[Tunable, ...]:
    """The kernels of a border model that have choices."""
    import onnx_ir as ir

    profile, target, plan = planned(task.on)
    return tuple(target.tunables(ir.load(task.on.border), plan, profile)) if isinstance(target, Tunes) else ()


def measure(task: TuneTask) -> None:
    """Measures one trial per line that `compiler.target.tuning_process` writes, until the parent closes the pipe."""
    import onnx_ir as ir

    profile, target, plan = planned(task.on)
    if not isinstance(target, Tunes):
        raise TargetUnavailable(f"target '{target.name}' has nothing to tune")
    measurer = target.measurer(ir.load(task.on.border), plan, profile, task.backend)
    with open(task.answers_fd, "w", encoding="utf-8") as answers:  # noqa: PTH123  a pipe of our parent's
        _tell(answers, TuneHello(measurer.evidence, measurer.device))
        with open(task.questions_fd, encoding="utf-8") as questions:  # noqa: PTH123
            for line in questions:
                _tell(answers, _answer(measurer, parse(TrialQuestion, json.loads(line))))


def _answer(measurer: Measurer, trial: TrialQuestion) -> TrialAnswer:
    try:
        return TrialAnswer(tuple(measurer.measure(trial.kernel, trial.choice).values))
    except CompilerError as error:
        return TrialAnswer(error=error.to_dict())
    except Exception as error:  # whatever a toolchain raises of a trial is that trial's result
        traceback.print_exc()
        return TrialAnswer(error=ToolchainFailed(f"{type(error).__name__}: {error}"[:1000]).to_dict())


def _tell(answers: TextIO, value: TuneHello | TrialAnswer) -> None:
    answers.write(json.dumps(to_json(value)) + "\n")
    # the parent waits for the line
    answers.flush()


def execute(task: ExecuteTask) -> ExecuteAnswer:
    """Runs an artifact on every input file and writes the outputs beside.

    With `repeat`, every input is run that many times more and each run is timed; less often, `LEAST_TIMED` times at
    least, where that would take longer than `repeat_s` by the first run. Under an emulator nothing is timed; a
    runner that can weighs its runs, and counts the guest instructions of one more inference where that is asked for.
    """
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        is_emulated = runner.evidence == Evidence.EMULATOR
        weigher = runner if is_emulated and isinstance(runner, WeighsRuns) else None
        repeat = 0 if is_emulated else task.repeat  # an emulator's time is no figure
        pairs = list(zip(task.inputs, task.outputs, strict=True))
        peaks = [_run_weighed(weigher, *paths) for paths in pairs] if weigher else []
        once = partial(_run_once, runner, repeat=repeat, budget_s=task.repeat_s)
        times = [() for _ in pairs] if weigher else [once(*paths) for paths in pairs]
        instructions = None
        if task.counted and is_emulated and isinstance(runner, CountsInstructions):
            instructions = runner.count_instructions(load_arrays(task.counted))
        note = runner.note if isinstance(runner, HasNote) else ""
        return ExecuteAnswer(runner.evidence, note, tuple(times), instructions, tuple(peaks))
    finally:
        runner.close()


WORK: Mapping[type[Any], Callable[[Any], object]] = {
    BuildTask: build,
    KernelsTask: kernels,
    TuneTask: measure,
    ExecuteTask: execute,
    EvaluateTask: evaluate,
    FootprintTask: footprint,
    GenerateTask: generate,
    LayerTimesTask: time_layers,
    RaceTask: race,
}


def prepare(name: str = "") -> tuple[str, ...]:
    """Imports what every piece of work needs, and the toolchain of a target that is `Prepares`.

    Other runtimes and toolchains are left out: a fork has none of their threads, and would wait for them for ever.

    Returns:
        No file that must not change: whoever asks for work has read the same code long ago.
    """
    importlib.import_module("onnx_ir")
    with contextlib.suppress(ValueError):
        task_of("{}")  # builds what reads tasks
    if name:
        with contextlib.suppress(CompilerError, ImportError):  # the work says it again
            target = find_target(name)
            if isinstance(target, Prepares):
                target.prepare()
    return ()


def work(folder: str) -> None:
    """Reads the request, does the work, writes the response, and ends this process."""
    place = Path(folder)
    try:
        task = task_of((place / "request.json").read_text(encoding="utf-8"))
        response: dict[str, Any] = {"value": to_json(WORK[type(task)](task))}
    except CompilerError as error:
        response = {"error": error.to_dict()}
    except Exception as error:  # whatever a toolchain raises must reach the parent as one message
        traceback.print_exc()
        response = {"error": InternalError(f"{type(error).__name__}: {error}").to_dict()}
    write_atomic(place / "response.json", json.dumps(response).encode())
    # os._exit writes no buffers out
    sys.stdout.flush()
    os._exit(0)  # some toolchains crash while they unload; the work is done and written


def _run_once(
    runner: Runner, source: Path, destination: Path, *, repeat: int, budget_s: float | None
) -> tuple[float, ...]:
    inputs, started = load_arrays(source), time.monotonic()
    write_arrays(destination, runner.run(inputs))
    first_s = time.monotonic() - started
    if budget_s is not None and repeat * first_s > budget_s:
        repeat = min(repeat, max(LEAST_TIMED, int(budget_s / first_s)))
    return tuple(times_ms(runner, inputs, repeat)) if repeat else ()


def _run_weighed(runner: WeighsRuns, source: Path, destination: Path) -> int:
    outputs, peak_bytes = runner.run_weighed(load_arrays(source))
    write_arrays(destination, outputs)
    return int(peak_bytes)


if __name__ == "__main__":
    follow_parent()
    work(sys.argv[1])
