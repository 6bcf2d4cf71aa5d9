"""The child's side of what a search measures: memory of one artifact, speed of several, outputs on a whole data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import TargetUnavailable
from compiler.model.numerics import Arrays, write_arrays
from compiler.target.request import (
    EvaluateAnswer,
    EvaluateTask,
    FootprintAnswer,
    FootprintTask,
    LayerTimesAnswer,
    LayerTimesTask,
    RaceAnswer,
    RaceTask,
)
from compiler.target.runner import ReportsPeakMemory, Runner, TimesLayers, TimesRuns
from compiler.target.target import find_target

BLOCK_MS = 100.0
"""How long one artifact runs before it is the other's turn: long against a cache's warming, short against a machine's
changes of load."""

BLOCK_RUNS = (3, 200)
"""Fewest and most runs of a block."""


def footprint(task: FootprintTask) -> FootprintAnswer:
    """Loads an artifact, runs it once, and gives this process's peak resident memory, or that of the runner's program.

    Raises:
        TargetUnavailable: The artifact cannot run here, or nothing tells the peak.
    """
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        inputs = read_npz(task.inputs)
        if isinstance(runner, ReportsPeakMemory):
            return FootprintAnswer(runner.evidence, int(runner.peak_memory_bytes(inputs)))
        runner.run(inputs)
        return FootprintAnswer(runner.evidence, _peak_bytes())
    finally:
        runner.close()


def race(task: RaceTask) -> RaceAnswer:
    """Runs several artifacts in turn, block by block, so that all see the same machine."""
    runners = [find_target(artifact.target).load(artifact) for artifact in task.artifacts]
    try:
        feeds = [read_npz(path) for path in task.inputs]
        sizes = [_block_size(runner, inputs) for runner, inputs in zip(runners, feeds, strict=True)]
        blocks: list[list[list[float]]] = [[] for _ in runners]
        for _ in range(task.rounds):
            for index, runner in enumerate(runners):
                blocks[index].append(times_ms(runner, feeds[index], sizes[index]))
        return RaceAnswer(
            tuple(tuple(float(np.median(times)) for times in rounds) for rounds in blocks),
            tuple(tuple(min(times) for times in rounds) for rounds in blocks),
        )
    finally:
        for runner in runners:
            runner.close()


def evaluate(task: EvaluateTask) -> EvaluateAnswer:
    """Runs an artifact on stacked samples, `batch` at a time; the last batch is filled up and cut again."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        samples = read_npz(task.inputs)
        count = len(next(iter(samples.values())))
        rows = [np.arange(start, start + task.batch) % count for start in range(0, count, task.batch)]
        batches = [runner.run({name: array[index] for name, array in samples.items()}) for index in rows]
        stacked = {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}
        write_arrays(task.outputs, stacked)
        return EvaluateAnswer(runner.evidence)
    finally:
        runner.close()


def time_layers(task: LayerTimesTask) -> LayerTimesAnswer:
    """Time of every kernel of an artifact, where its runner can tell; none where it cannot."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        layers = runner.layer_times(read_npz(task.inputs)) if isinstance(runner, TimesLayers) else ()
        return LayerTimesAnswer(runner.evidence, tuple(layers))
    finally:
        runner.close()


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of a file that the parent wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _block_size(runner: Runner, inputs: Arrays) -> int:
    runner.run(inputs)
    (first,) = times_ms(runner, inputs, 1)
    fewest, most = BLOCK_RUNS
    return max(fewest, min(most, round(BLOCK_MS / max(first, 1e-3))))


def times_ms(runner: Runner, inputs: Arrays, runs: int) -> list[float]:
    """Milliseconds of each of some runs: the runner's own where it times itself."""
    if isinstance(runner, TimesRuns):
        return list(runner.latencies_ms(inputs, runs))
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        runner.run(inputs)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _peak_bytes() -> int:
    """Peak resident memory of this process since it was started (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise TargetUnavailable("this system does not tell a process's peak memory") from error
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    if not found:
        raise TargetUnavailable("this system does not tell a process's peak memory")
    return int(found[0]) << 10
