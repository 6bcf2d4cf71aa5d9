"""The child's side of what a search measures: memory of one artifact, its kernels' times, outputs on a data set."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact import artifact_from_dict
from compiler.errors import TargetUnavailable
from compiler.model.numerics import write_arrays
from compiler.target.race import read_npz
from compiler.target.target import find_target

_PR_SET_THP_DISABLE = 41
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S{4} \S+ \S+ \d+ *(.*)$")
_MEMORY_KEYS = ("VmHWM", "RssFile", "RssShmem")


def footprint(request: Mapping[str, Any]) -> dict[str, Any]:
    """Loads an artifact, runs it once, and gives this process's peak memory, or that of the runner's program.

    Raises:
        TargetUnavailable: The artifact cannot run here, or this system does not report a process's peak memory.
    """
    _refuse_huge_pages()
    artifact = artifact_from_dict(request["artifact"])
    runner = find_target(artifact.target).load(artifact)
    try:
        inputs = read_npz(Path(request["inputs"]))
        told = getattr(runner, "peak_memory_bytes", None)
        if told is not None:
            return {"evidence": str(runner.evidence), "peak_bytes": int(told(inputs))}
        runner.run(inputs)
        return {"evidence": str(runner.evidence), "peak_bytes": peak_bytes(artifact.root)}
    finally:
        runner.close()


def evaluate(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs an artifact on stacked samples, `batch` at a time; the last batch is filled up and cut again."""
    runner = find_target(request["artifact"]["target"]).load(artifact_from_dict(request["artifact"]))
    try:
        samples, batch = read_npz(Path(request["inputs"])), int(request["batch"])
        count = len(next(iter(samples.values())))
        rows = [np.arange(start, start + batch) % count for start in range(0, count, batch)]
        found = [runner.run({name: array[index] for name, array in samples.items()}) for index in rows]
        stacked = {name: np.concatenate([one[name] for one in found])[:count] for name in found[0]}
        write_arrays(Path(request["outputs"]), stacked)
        return {"evidence": str(runner.evidence)}
    finally:
        runner.close()


def profile(request: Mapping[str, Any]) -> dict[str, Any]:
    """Time of every kernel of an artifact, where its runner can tell; an empty list where it cannot."""
    runner = find_target(request["artifact"]["target"]).load(artifact_from_dict(request["artifact"]))
    try:
        told = getattr(runner, "layer_times", None)
        found = told(read_npz(Path(request["inputs"]))) if told is not None else []
        return {"evidence": str(runner.evidence), "layers": [asdict(one) for one in found]}
    finally:
        runner.close()


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
