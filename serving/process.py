"""The process of one build: loads it, runs batches that stand in shared memory, and says how each ended.

It is a process of its own so that Python's lock does not hold the front while a model runs, that a crash takes nobody
else along, and that a build which is not needed gives its memory back. Both sides write one JSON line per message into
a socket; tensors stand in a memory file that both map. When the front is gone the socket closes, and the process ends.

Nothing here imports the server or the scheduler: it starts in a fraction of a second.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from compiler.target import Array, Artifact, CompilerError, Runner, StaysLoaded, TensorSpec, find_target

ALIGNMENT = 64
"""Bytes at which every tensor begins: a cache line, and what vector instructions like."""


def artifact_to_json(artifact: Artifact) -> dict[str, Any]:
    """What the process needs to load an artifact."""
    return {
        "root": str(artifact.root.absolute()),
        "target": artifact.target,
        "precision": artifact.precision,
        "inputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in artifact.inputs],
        "outputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in artifact.outputs],
        "files": list(artifact.files),
        "tools": dict(artifact.tools),
        "facts": dict(artifact.facts),
    }


def artifact_from_json(value: Mapping[str, Any]) -> Artifact:
    """What `artifact_to_json` wrote."""
    specs = {
        side: tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in value[side])
        for side in ("inputs", "outputs")
    }
    return Artifact(
        root=Path(value["root"]),
        target=value["target"],
        precision=value["precision"],
        inputs=specs["inputs"],
        outputs=specs["outputs"],
        files=tuple(value["files"]),
        tools=value["tools"],
        facts=value["facts"],
    )


def place_tensors(shapes: Sequence[tuple[str, str, Sequence[int]]], start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Where tensors stand one after another: name, dtype, shape and offset of each; and the end of the last."""
    places, offset = [], start
    for name, dtype, shape in shapes:
        places.append({"name": name, "dtype": dtype, "shape": list(shape), "offset": offset})
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return places, offset


def view(memory: mmap.mmap, place: Mapping[str, Any]) -> Array:
    """The tensor at a place, without a copy."""
    count = math.prod(place["shape"])
    found: Array = np.frombuffer(memory, np.dtype(place["dtype"]), count, place["offset"]).reshape(place["shape"])
    return found


def main() -> None:
    """Loads the build that the first line names, then runs one batch per line until the front closes the socket."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    memory_fd = int(sys.argv[2])
    if "background" in sys.argv[3:]:
        _give_way()
    lines = _lines(channel)
    try:
        told = json.loads(next(lines))
        runner = _load(artifact_from_json(told["artifact"]))
        _tell(channel, _prepare(runner, told, memory_fd))
    except CompilerError as error:
        _tell(channel, {"error": str(error)})
        os._exit(0)
    memory = mmap.mmap(memory_fd, 0)
    for line in lines:
        try:
            _tell(channel, _run(runner, memory, json.loads(line)))
        except ConnectionError as error:  # the program that it asks is gone: so is this process, for the front
            sys.stderr.write(f"{told['artifact']['root']}: {error}\n")
            _end_all(1)
    _end_all(0)


def _load(artifact: Artifact) -> Runner:
    runner = find_target(artifact.target).load(artifact)
    return runner.stay_loaded() if isinstance(runner, StaysLoaded) else runner


def _end_all(code: int) -> NoReturn:
    """Ends at once, with all that this process started: some toolchains crash while they unload, and nobody waits."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(code)


def _give_way() -> None:
    """Runs only when no other process wants the processor; threads that are started later do the same."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):  # Linux: the first that wants the processor gets it at once, also from a nice process
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _prepare(runner: Runner, told: Mapping[str, Any], memory_fd: int) -> dict[str, Any]:
    """Runs zeros at every size that is asked for, and makes room for the largest; says what the runs took."""
    times: dict[str, float] = {}
    most_in = most_out = 0
    for label, shapes in told["warm"].items():
        _, end = place_tensors(shapes)
        inputs = {name: np.zeros(shape, dtype) for name, dtype, shape in shapes}
        outputs = runner.run(inputs)
        for _ in range(told["timed_runs"]):
            started = time.perf_counter()
            runner.run(inputs)
            times[label] = max(times.get(label, 0.0), time.perf_counter() - started)
        most_in = max(most_in, end)
        most_out = max(most_out, place_tensors([(n, a.dtype.name, a.shape) for n, a in outputs.items()])[1])
    os.ftruncate(memory_fd, max(ALIGNMENT, most_in + most_out))
    return {"ready": True, "seconds": times, "input_bytes": most_in, "bytes": max(ALIGNMENT, most_in + most_out)}


def _run(runner: Runner, memory: mmap.mmap, task: Mapping[str, Any]) -> dict[str, Any]:
    """One batch: its outputs stand behind the inputs."""
    started = time.perf_counter()
    try:
        outputs = runner.run({place["name"]: view(memory, place) for place in task["inputs"]})
    except CompilerError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - started
    places, end = place_tensors([(name, array.dtype.name, array.shape) for name, array in outputs.items()], task["end"])
    if end > len(memory):
        return {"error": f"the outputs take {end - task['end']} bytes, more than at the largest sizes of the plan"}
    for place in places:
        view(memory, place)[...] = outputs[place["name"]]
    return {"outputs": places, "seconds": seconds, "nan": any(map(has_nan, outputs.values()))}


def has_nan(array: Array) -> bool:
    """Whether it holds NaN; infinities may be meant, as in the logarithm of a mask."""
    return array.dtype.kind in "fc" and bool(np.isnan(array).any())


def _lines(channel: socket.socket) -> Iterator[str]:
    with channel.makefile("r", encoding="utf-8") as file:
        yield from file


def _tell(channel: socket.socket, message: Mapping[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
