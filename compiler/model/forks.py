"""The parent's side of `compiler.model.fork_server`: starts it, and has processes forked from it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from io import RawIOBase
from pathlib import Path

from compiler.errors import ToolchainFailed
from compiler.model.fork_server import FORK, LEAVE

FORK_S = 600.0
"""How long a fork may take: the first one waits until everything is imported, which takes a minute where many other
processes compute. A fork server that was killed is noticed at once."""

READ_AT_START = ("PYTHON", "LD_", "OMP_", "OPENBLAS_", "MKL_", "COVERAGE_")
"""Variables that a process reads once, before a fork of it could be told others; by the beginning of their names."""


class Fork:
    """A process of which this one is not the parent; used as a `subprocess.Popen`.

    Args:
        pid: Its process id, which is the id of its group too.
        stdin: It, and everything that it started, ends when this is closed.
        answers: Where its exit code is to be read.
    """

    def __init__(self, pid: int, stdin: RawIOBase, answers: RawIOBase) -> None:
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        self._answers = answers

    def poll(self) -> int | None:
        """Its exit code, below 0 for the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code when it has ended. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            line = self._answers.readline()
            # without a line the fork server was killed, and the kernel has killed the fork after it
            self.returncode = int(line) if line else -int(signal.SIGKILL)
        return self.returncode

    def close(self) -> None:
        """Lets go of it."""
        self.stdin.close()
        self._answers.close()


class ForkServer:
    """The process that others are forked from: started when first needed, and again where it was killed.

    It ends when this process does, however that comes.

    Args:
        prepare: `MODULE:FUNCTION`: imports what the work needs, and returns the files that must not change meanwhile.
        arguments: What the function is given.
        name: What `ps` and `top` call a forked process; 15 letters.
    """

    def __init__(self, prepare: str, *arguments: str, name: str) -> None:
        self._prepare, self._name = (prepare, *arguments), name
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._began_with: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts it if it does not run; it imports what is needed while this process goes on."""
        with self._lock:
            self._connect(environment)

    def close(self) -> None:
        """Ends it, and with it the forks that still run."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            for process in self._processes:
                process.kill()
                process.wait()
            self._processes = []

    def fork(
        self,
        function: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        output: int,
        errors: int,
    ) -> Fork:
        """Begins a process.

        Args:
            function: `MODULE:FUNCTION`: what it does.
            arguments: What the function is given.
            folder: Where it runs.
            environment: All of its environment.
            output: File of its standard output.
            errors: File of its standard error.

        Raises:
            ToolchainFailed: No process can be forked.
        """
        request = {"function": function, "arguments": arguments, "folder": str(folder.absolute())}
        # the server may have been killed, or have seen that its code is old
        fork = self._fork(environment, output, errors) or self._fork(environment, output, errors)
        if fork is None:
            raise ToolchainFailed("the process that others are forked from ends at once", where=self._name)
        with contextlib.suppress(BrokenPipeError):  # it was killed already, as its exit code says
            fork.stdin.write(json.dumps({**request, "environment": dict(environment)}).encode() + b"\n")
        return fork

    def _fork(self, environment: Mapping[str, str], output: int, errors: int) -> Fork | None:
        """A process that waits for what it is to do; None where the fork server is killed meanwhile."""
        stdin, answers = os.pipe(), os.pipe()
        with ExitStack() as undone:
            into = undone.enter_context(os.fdopen(stdin[1], "wb", buffering=0))
            told = undone.enter_context(os.fdopen(answers[0], "rb", buffering=0))
            try:
                connected = self._send(environment, [stdin[0], output, errors, answers[1]])
            finally:
                os.close(stdin[0])
                os.close(answers[1])
            pid = self._read_pid(told)
            if not pid:
                self._leave(connected)
                return None
            undone.pop_all()
            return Fork(pid, into, told)

    def _send(self, environment: Mapping[str, str], files: Sequence[int]) -> socket.socket:
        with self._lock:
            connected = self._connect(environment)
            with contextlib.suppress(OSError):  # it was killed: no process id comes
                socket.send_fds(connected, [FORK], files)
            return connected

    def _connect(self, environment: Mapping[str, str]) -> socket.socket:
        """The socket of the process, which is started where it does not run or was started in another environment."""
        began_with = {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}
        if self._socket is not None and began_with != self._began_with:
            self._end()
        if self._socket is None:
            self._began_with = began_with
            self._socket, theirs = socket.socketpair()
            with theirs:
                # -P: the current folder is no place for code; a session of its own: Ctrl-C is for the parent
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "compiler.model.fork_server", self._name, *self._prepare],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=dict(environment),
                    start_new_session=True,
                )
            self._processes = [*(earlier for earlier in self._processes if earlier.poll() is None), process]
        return self._socket

    def _leave(self, connected: socket.socket) -> None:
        with self._lock:
            if self._socket is connected:
                self._end()

    def _end(self) -> None:
        """Another server is started next; this one ends when what was forked from it has."""
        if self._socket is not None:
            with self._socket, contextlib.suppress(OSError):  # it was killed
                self._socket.send(LEAVE)
            self._socket = None

    def _read_pid(self, answers: RawIOBase) -> int:
        """The process id of a fork; 0 where the fork server was killed before it could fork.

        Raises:
            ToolchainFailed: It does not answer.
        """
        if not select.select([answers], [], [], FORK_S)[0]:
            raise ToolchainFailed(
                f"no process could be begun within {FORK_S:g} s",
                where=self._name,
                remedy="See whether this machine has memory and processes left.",
            )
        return int(answers.readline() or 0)


@cache
def shared_server(prepare: str, *arguments: str, name: str) -> ForkServer:
    """This process's fork server of such a preparation, for whoever asks; it is closed when this process ends."""
    forks = ForkServer(prepare, *arguments, name=name)
    atexit.register(forks.close)
    return forks
