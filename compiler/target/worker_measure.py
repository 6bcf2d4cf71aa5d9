"""The child's side of what a search measures: memory of one artifact, its kernels' times, outputs on a data set."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from compiler.errors import TargetUnavailable
from compiler.evaluate.answers import answer
from compiler.model.numerics import Arrays, load_arrays, write_arrays
from compiler.target.request import (
    EvaluateAnswer,
    EvaluateTask,
    FootprintAnswer,
    FootprintTask,
    LayerTimesAnswer,
    LayerTimesTask,
)
from compiler.target.runner import KeepsCache, ReportsPeakMemory, Runner, TimesLayers, TimesProcessor, TimesRuns
from compiler.target.target import find_target
from compiler.target.worker_generate import begin

# of linux/prctl.h; huge pages would round memory up to 2 MiB, as the kernel finds time for it
_PR_SET_THP_DISABLE = 41
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S{4} \S+ \S+ \d+ *(.*)$")
_MEMORY_KEYS = ("VmHWM", "RssFile", "RssShmem")


def footprint(task: FootprintTask) -> FootprintAnswer:
    """Loads an artifact, runs it once if there are inputs, and gives this process's peak memory, or its program's.

    Raises:
        TargetUnavailable: The artifact cannot run here, or this system does not report a process's peak memory.
    """
    _refuse_huge_pages()
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        if isinstance(runner, ReportsPeakMemory):
            return FootprintAnswer(runner.evidence, int(runner.peak_memory_bytes(load_arrays(task.inputs))))
        if task.decoder is not None and task.asked is not None and isinstance(runner, KeepsCache):
            answer(begin(runner, task.artifact.inputs, task.decoder), task.asked)
        elif inputs := load_arrays(task.inputs):
            runner.run(inputs)
        return FootprintAnswer(runner.evidence, peak_bytes(task.artifact.root))
    finally:
        runner.close()


def evaluate(task: EvaluateTask) -> EvaluateAnswer:
    """Runs an artifact on stacked samples, `batch` at a time; the last batch is filled up and cut again."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        samples = load_arrays(task.inputs)
        count = len(next(iter(samples.values())))
        rows = [np.arange(start, start + task.batch) % count for start in range(0, count, task.batch)]
        part = task.judged.of if task.judged else dict
        batches = [part(runner.run({name: array[index] for name, array in samples.items()})) for index in rows]
        stacked = {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}
        write_arrays(task.outputs, stacked)
        return EvaluateAnswer(runner.evidence)
    finally:
        runner.close()


def time_layers(task: LayerTimesTask) -> LayerTimesAnswer:
    """Time of every kernel of an artifact, where its runner can tell; none where it cannot."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        layers = runner.layer_times(load_arrays(task.inputs)) if isinstance(runner, TimesLayers) else ()
        return LayerTimesAnswer(runner.evidence, tuple(layers))
    finally:
        runner.close()


def times_ms(runner: Runner, inputs: Arrays, runs: int) -> list[float]:
    """Milliseconds of each of some runs: the runner's own where it times itself."""
    if isinstance(runner, TimesRuns):
        return list(runner.latencies_ms(inputs, runs))
    return _timed_ms(runner, inputs, runs, time.perf_counter)


def processor_ms(runner: Runner, inputs: Arrays, runs: int) -> list[float]:
    """Milliseconds of processor time of each of some runs, of all threads together.

    Raises:
        TargetUnavailable: The runner starts a program and does not tell its processor time.
    """
    if isinstance(runner, TimesProcessor):
        return list(runner.processor_ms(inputs, runs))
    if isinstance(runner, TimesRuns):
        raise TargetUnavailable("the target's runner does not tell the processor time of the program that it starts")
    return _timed_ms(runner, inputs, runs, time.process_time)


def _timed_ms(runner: Runner, inputs: Arrays, runs: int, clock_s: Callable[[], float]) -> list[float]:
    times = []
    for _ in range(runs):
        started = clock_s()
        runner.run(inputs)
        times.append((clock_s() - started) * 1e3)
    return times


def peak_bytes(folder: Path) -> int:
    """Peak resident memory of this process, counting of all mapped files only those below a folder (Linux).

    A runtime's own libraries are left out. How many of their pages are resident says which of its kernels a model
    calls, and what the kernel had in its page cache; they are shared, and no part of the model's memory.

    Raises:
        TargetUnavailable: This system does not report it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TargetUnavailable("this system does not report a process's peak memory") from error
    lines = (line.partition(":") for line in status.splitlines())
    kib = {key: int(value.split()[0]) for key, _, value in lines if key in _MEMORY_KEYS}
    if len(kib) < len(_MEMORY_KEYS):
        raise TargetUnavailable("this system does not report a process's peak memory")
    others_kib = kib["RssFile"] + kib["RssShmem"] - _mapped_kib(maps, f"{folder.resolve()}/")
    return (kib["VmHWM"] - others_kib) << 10


def _mapped_kib(maps: str, prefix: str) -> int:
    """Resident KiB of the mapped files whose path starts with a prefix."""
    total, name = 0, ""
    for line in maps.splitlines():
        if mapping := _MAPPING.match(line):
            name = mapping[1]
        elif line.startswith("Rss:") and name.startswith(prefix):
            total += int(line.split()[1])
    return total


def _refuse_huge_pages() -> None:
    """Counts memory in pages of 4 KiB: whether a page of 2 MiB is free differs with what else the machine does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
