"""A build as a child process of a worker: started, listened to, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import psutil

from compiler.model.forks import Fork, ForkServer
from server.builds import build_environment

GRACE_S = 2.0
"""How long a build has to clear up after SIGTERM, before SIGKILL."""

DEATH_S = 10.0
"""How long the kernel has to end what was killed: a process that waits for a broken disk takes long."""

MAX_LINES = 2000
"""Lines of a build that wait to be reported; where a server is slow, the build waits too."""

MAX_RESULT_BYTES = 16 << 20


class BuildProcess:
    """One build.

    Args:
        forks: Where its process is forked from.
        arguments: The command line after `fleetc`.
        folder: Where it runs, and where its output goes.
        variables: Added to its environment, which has nothing else that concerns the server.
    """

    def __init__(self, forks: ForkServer, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self._folder, self._lines = folder, queue.Queue[str](MAX_LINES)
        self._fork, self._stderr = _begin(forks, arguments, folder, {**build_environment(), **variables})
        self._reader = threading.Thread(target=self._read, name="fleetc-build-events", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id, which is the id of its group too."""
        return self._fork.pid

    def lines(self, *, wait_s: float) -> list[str]:
        """What it wrote on stderr since the last call; waits so long for the first line."""
        found: list[str] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._lines.get(timeout=wait_s))
            while len(found) < MAX_LINES:
                found.append(self._lines.get_nowait())
        return found

    def exit_code(self) -> int | None:
        """Its exit code, below 0 for the signal that ended it; None while it runs or has lines left."""
        code = self._fork.poll()
        if code is not None:
            self._end_group()  # the child's guardian, and tools that it left behind, hold the other end of its stderr
        return None if code is None or self._reader.is_alive() or not self._lines.empty() else code

    def result(self) -> dict[str, Any]:
        """The one JSON document on its stdout; empty where it wrote none."""
        with (self._folder / "out.json").open("rb") as file:
            raw = file.read(MAX_RESULT_BYTES)
        with contextlib.suppress(ValueError):
            value = json.loads(raw)
            return value if isinstance(value, dict) else {}
        return {}

    def end(self) -> None:
        """Ends it and everything that it started; returns when all of it is gone."""
        family = _family(self._fork.pid)
        if self._fork.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._fork.pid, signal.SIGTERM)
            self._wait(GRACE_S)
        family |= _family(self._fork.pid)
        self._end_group()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._wait(DEATH_S)
        psutil.wait_procs(family, timeout=DEATH_S)
        self._close()

    def close(self) -> None:
        """Lets go of a build that has ended; tools that it left behind are ended."""
        self._end_group()
        self._close()

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._fork.pid, signal.SIGKILL)

    def _close(self) -> None:
        self._fork.close()
        self._reader.join(1.0)

    def _wait(self, limit_s: float) -> None:
        """Waits for its end, or so long; what it writes is read, so that it is not held up by a full pipe."""
        deadline = time.monotonic() + limit_s
        while self._fork.poll() is None and time.monotonic() < deadline:
            self.lines(wait_s=0.05)

    def _read(self) -> None:
        with self._stderr:
            for line in self._stderr:
                self._lines.put(line.decode("utf-8", "replace").rstrip("\n"))


def _begin(
    forks: ForkServer, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[Fork, BufferedReader]:
    """The process of a build, and what it writes on stderr."""
    stderr, errors = os.pipe()
    reader = os.fdopen(stderr, "rb")
    try:
        with (folder / "out.json").open("wb") as output:
            fork = forks.fork(
                "server.builds:build",
                arguments,
                folder=folder,
                environment=environment,
                output=output.fileno(),
                errors=errors,
            )
    except BaseException:
        reader.close()
        raise
    finally:
        os.close(errors)
    return fork, reader


def _family(pid: int) -> set[psutil.Process]:
    """A process and everything that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    return set()
