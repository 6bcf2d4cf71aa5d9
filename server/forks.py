"""The worker's side of `server.fork_server`: starts it, and has builds forked from it."""

from __future__ import annotations

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
from io import BufferedIOBase, RawIOBase
from pathlib import Path

from compiler.errors import ToolchainFailed

FORK_S = 60.0
"""How long a fork may take: the first one waits until everything is imported."""


class Fork:
    """A build's process, of which this one is not the parent.

    Args:
        pid: Its process id, which is the id of its group too.
        stdin: The build, and everything that it started, ends when this is closed.
        stderr: What it writes.
        answers: Where its exit code is to be read.
    """

    def __init__(self, pid: int, stdin: RawIOBase, stderr: BufferedIOBase, answers: RawIOBase) -> None:
        self.pid, self.stdin, self.stderr = pid, stdin, stderr
        self._answers = answers
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, below 0 for the signal that ended it; None while it runs."""
        if self._code is None and select.select([self._answers], [], [], 0)[0]:
            line = self._answers.readline()
            # without a line the fork server was killed, and the kernel has killed the build after it
            self._code = int(line) if line else -int(signal.SIGKILL)
        return self._code

    def close(self) -> None:
        """Lets go of it."""
        self.stdin.close()
        self._answers.close()


class ForkServer:
    """The process that one worker's builds are forked from: started when first needed, and again where it was killed.

    It ends when this process does, however that comes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts it if it does not run; it imports what builds need while the worker goes on."""
        with self._lock:
            self._connect()

    def close(self) -> None:
        """Ends it, and with it the builds that still run."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            for process in self._processes:
                process.kill()
                process.wait()

    def fork(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Fork:
        """Begins a build.

        Args:
            arguments: The command line after `fleetc`.
            folder: Where it runs; `out.json` there gets its standard output.
            environment: All of its environment.

        Raises:
            ToolchainFailed: No process can be forked.
        """
        request = {"arguments": arguments, "folder": str(folder.absolute()), "environment": dict(environment)}
        fork = self._fork() or self._fork()  # the server may have been killed, or have seen that its code is old
        if fork is None:
            raise ToolchainFailed("the process that builds are forked from ends at once", where="worker")
        with contextlib.suppress(BrokenPipeError):  # the build was killed already, as its exit code says
            fork.stdin.write(json.dumps(request).encode() + b"\n")
        return fork

    def _fork(self) -> Fork | None:
        """A process that waits for what it is to do; None where the fork server is killed meanwhile."""
        stdin, stderr, answers = os.pipe(), os.pipe(), os.pipe()
        sent = stdin[0], stderr[1], answers[1]
        with ExitStack() as undone:
            into = undone.enter_context(os.fdopen(stdin[1], "wb", buffering=0))
            out = undone.enter_context(os.fdopen(stderr[0], "rb"))
            told = undone.enter_context(os.fdopen(answers[0], "rb", buffering=0))
            try:
                connected = self._send(sent)
            finally:
                for file in sent:
                    os.close(file)
            pid = _read_pid(told)
            if not pid:
                self._leave(connected)
                return None
            undone.pop_all()
            return Fork(pid, into, out, told)

    def _send(self, files: Sequence[int]) -> socket.socket:
        with self._lock:
            connected = self._connect()
            with contextlib.suppress(OSError):  # it was killed: no process id comes
                socket.send_fds(connected, [b"\n"], files)
            return connected

    def _connect(self) -> socket.socket:
        """The socket of the process, which is started where it does not run."""
        if self._socket is None:
            self._socket, theirs = socket.socketpair()
            with theirs:
                # -P: the current folder is no place for code; a session of its own: Ctrl-C is for the worker
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "server.fork_server"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=build_environment(),
                    start_new_session=True,
                )
            self._processes = [*(earlier for earlier in self._processes if earlier.poll() is None), process]
        return self._socket

    def _leave(self, connected: socket.socket) -> None:
        """Another server is started next; this one ends when the builds that were forked from it have."""
        with self._lock:
            connected.close()
            if self._socket is connected:
                self._socket = None


def build_environment() -> dict[str, str]:
    """The worker's environment without what concerns the server: a build opens strangers' models."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEETC_")}


def _read_pid(answers: RawIOBase) -> int:
    """The process id of a fork; 0 where the fork server was killed before it could fork.

    Raises:
        ToolchainFailed: It does not answer.
    """
    if not select.select([answers], [], [], FORK_S)[0]:
        raise ToolchainFailed(
            f"no process could be begun for the build within {FORK_S:g} s",
            where="worker",
            remedy="See whether the worker's machine has memory and processes left.",
        )
    return int(answers.readline() or 0)
