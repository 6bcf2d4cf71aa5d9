"""The front's side of a build's process: starts it, gives it batches, and notices when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import mmap
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.target import Array, Arrays, Artifact, ToolchainFailed
from serving.process import artifact_to_json, place_tensors, view

START_S = 60.0
"""Seconds a build may take to load."""

LINE_BYTES = 1 << 20
"""Longest message of a process: names and shapes of a model's outputs."""

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Of a build's process: glibc keeps an area of freed memory for each thread, and toolchains have many threads; a run
allocates next to nothing, so that they do not wait for each other.."""

Shapes = list[tuple[str, str, list[int]]]
"""Name, dtype and shape of every input."""


class BuildGone(Exception):
    """The process of a build ended, or did not answer in time; `what` says how."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class BuildRefused(Exception):
    """A build refuses a batch; its process goes on."""


@dataclass(frozen=True)
class Ran:
    """What a batch gave.

    Args:
        outputs: Name → array over all items; copies.
        seconds: What the run itself took.
        has_nan: Whether an output holds NaN.
    """

    outputs: Arrays
    seconds: float
    has_nan: bool


class BuildProcess:
    """One build, loaded in a process of its own.

    Args:
        artifact: What to load.
        is_background: Whether it runs only when no other process wants the processor.
    """

    def __init__(self, artifact: Artifact, *, is_background: bool = False) -> None:
        self._artifact, self._is_background = artifact, is_background
        self._process: asyncio.subprocess.Process | None = None
        self._memory: mmap.mmap | None = None
        self.warm_s: dict[int, float] = {}

    @property
    def is_alive(self) -> bool:
        """Whether it can be given a batch."""
        return self._memory is not None and self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """The process; None where there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, warm: Mapping[int, Shapes], *, timed_runs: int) -> None:
        """Starts the process and waits until the build is loaded.

        Args:
            warm: Batch size → inputs to run once; room is made for the largest.
            timed_runs: How often each is then run and timed.

        Raises:
            ToolchainFailed: It cannot be loaded.
        """
        ours, theirs = socket.socketpair()
        memory_fd = os.memfd_create("fleetc-tensors")
        fds = (theirs.fileno(), memory_fd)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the current folder is no place for code
                "-m",
                "serving.process",
                *map(str, fds),
                *(["background"] if self._is_background else []),
                env={**ENVIRONMENT, **os.environ},
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is the front's: it lets the process finish
            )
            self._mark_first_to_go()
            self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
            theirs.close()
            message = {"artifact": artifact_to_json(self._artifact), "warm": warm, "timed_runs": timed_runs}
            ready = await self._ask(message, timeout_s=START_S)
            if "error" in ready:
                raise ToolchainFailed(ready["error"], where=str(self._artifact.root))
            self._memory = mmap.mmap(memory_fd, ready["bytes"])
            self.warm_s = {int(size): seconds for size, seconds in ready["seconds"].items()}
        except BuildGone as error:
            raise ToolchainFailed(f"the process of the build {error.what}", where=str(self._artifact.root)) from error
        finally:
            theirs.close()
            os.close(memory_fd)
            if self._memory is None:
                await self.close()

    async def run(self, batch: Sequence[Arrays], shapes: Shapes, *, timeout_s: float) -> Ran:
        """Runs a batch.

        Args:
            batch: Inputs of each member, stacked along the first axis in this order.
            shapes: Name, dtype and shape of the whole batch's inputs; what the members do not fill repeats the last.
            timeout_s: After which the process counts as hung, and is killed.

        Raises:
            BuildGone: The process ended meanwhile.
            BuildRefused: The build refuses the inputs.
        """
        if self._memory is None:
            raise BuildGone("is not there")
        places, end = place_tensors(shapes)
        for place in places:
            _fill(view(self._memory, place), [inputs[place["name"]] for inputs in batch])
        answer = await self._ask({"inputs": places, "end": end}, timeout_s=timeout_s)
        if "error" in answer:
            raise BuildRefused(answer["error"])
        outputs = {place["name"]: view(self._memory, place).copy() for place in answer["outputs"]}
        return Ran(outputs, answer["seconds"], answer["nan"])

    async def close(self) -> None:
        """Ends the process and waits for it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if hasattr(self, "_writer"):
            self._writer.close()
        self._memory = None  # the mapping goes with its last view

    async def _ask(self, message: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(json.dumps(message).encode() + b"\n")
                line = await self._reader.readline()
        except TimeoutError as error:
            await self.close()
            raise BuildGone(f"did not answer within {timeout_s:g} s") from error
        except OSError as error:
            await self.close()
            raise BuildGone("ended") from error
        if not line.endswith(b"\n"):
            code = await self._process.wait() if self._process else 0
            await self.close()
            raise BuildGone(_death(code))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _mark_first_to_go(self) -> None:
        """Where memory runs out the kernel shall choose this process, and not the front (Linux; any process may)."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("1000")


def _fill(whole: Array, parts: Sequence[Array]) -> None:
    """The members one after another; a smaller number than the batch's is filled up with the last item."""
    if len(parts) == 1 and parts[0].shape == whole.shape:
        whole[...] = parts[0]
        return
    offset = 0
    for part in parts:
        whole[offset : offset + len(part)] = part
        offset += len(part)
    if offset < len(whole):
        whole[offset:] = parts[-1][-1]


def _death(code: int) -> str:
    if code < 0:
        names = {member.value: member.name for member in signal.Signals}
        return f"ended by {names.get(-code, f'signal {-code}')}"
    return f"ended with exit code {code}"


def bytes_of(shapes: Shapes) -> int:
    """Bytes of all inputs."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in shapes)
