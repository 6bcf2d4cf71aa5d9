"""Measurements of built artifacts in a child process, kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from compiler.artifact.adapter import parse, to_json
from compiler.driver.stages.candidate import is_foreign
from compiler.driver.stages.compile import Built
from compiler.driver.stages.context import BuildContext
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Arrays, arrays_digest, write_arrays
from compiler.store import StageName, read_result, write_result
from compiler.store.scratch import scratch_folder
from compiler.target.request import Task, ask

_RESULTS = "measured.json"

A = TypeVar("A")


def measure_in_child(
    context: BuildContext,
    stage: StageName,
    answer: type[A],
    builds: Sequence[tuple[Built, Arrays]],
    task: Callable[[tuple[Path, ...]], Task],
    *,
    times: int = 1,
    is_alone: bool = True,
    **arguments: object,
) -> tuple[A, ...]:
    """Has artifacts measured in child processes, or takes the results from the store.

    Args:
        context: The device.
        stage: `memory`, `speed` or `layers`.
        answer: The type of what a child answers.
        builds: The artifacts, each with its inputs.
        task: Files with those inputs → what the child is to do.
        times: Child processes to ask, one after another.
        is_alone: Whether other work of builds waits meanwhile; the time of what an emulator runs is no figure.
        arguments: What else the results depend on.

    Returns:
        What each child answered.

    Raises:
        CompilerError: Whatever the work raised, or how the child ended.
    """

    def make(folder: Path) -> None:
        where, limits = f"{context.name}: {stage}", context.options.child_limits
        if is_foreign(context.job.profile.cpu):
            limits = replace(limits, timeout_s=min(limits.timeout_s, context.options.emulate_s))
        with scratch_folder() as scratch:
            paths = tuple(scratch / f"in{index}.npz" for index in range(len(builds)))
            for path, (_, inputs) in zip(paths, builds, strict=True):
                write_arrays(path, inputs)
            asked = task(paths)
            answers = [ask(asked, answer, folder=scratch, child_limits=limits, where=where) for _ in range(times)]
        write_result(folder, _RESULTS, [to_json(result) for result in answers])

    run = context.stages.measure if is_alone else context.stages.run
    entry = run(
        stage,
        make,
        builds=[built.entry.digest for built, _ in builds],
        inputs=[arrays_digest(inputs) for _, inputs in builds],
        arguments={**arguments, "times": times},
        host=host_fingerprint(),
    )
    return tuple(parse(answer, value) for value in read_result(entry, _RESULTS))
