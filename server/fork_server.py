"""The process that builds are forked from: it has imported what every build needs, so that a build begins at once.

`server.forks` starts it, on the worker's machine, with a socket as its standard input. Each message there brings three
files: the standard input and the standard error of a build, and where its process id and, later, its exit code are
written. A build reads from its standard input what it is to do; all of its processes end when the other end of that
is closed, or when this process ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from compiler.model.child import follow_parent
from compiler.store.digests import closure_digest, find_closure

NEEDED = (
    "compiler.cli",
    "compiler.driver.build",
    "compiler.passes.pipelines",
    "compiler.store.remote.client",
)
"""What a build imports whatever its target. Runtimes and toolchains are left out: a fork has none of their threads, and
would wait for them for ever."""

NAME = "fleetc-build"
"""What `ps` and `top` call the process of a build."""

STAGES = "compiler.driver.stages."
"""Modules whose sources are part of the keys of stages."""


def main() -> None:
    """Serves until the worker is gone or its sources have changed; in a forked process, builds."""
    worker = socket.socket(fileno=os.dup(0))
    sources = load()
    if _Forks(worker, sources).serve():
        _build()


def load() -> dict[str, int]:
    """Imports what builds need, and reads its sources for their keys. Returns all files of it by the time of change."""
    for module in NEEDED:
        importlib.import_module(module)
    files = {str(file) for module in sys.modules.values() if (file := getattr(module, "__file__", None))}
    for name in [name for name in sys.modules if name.startswith(STAGES)]:
        closure_digest(name)
        files |= {str(path) for _, path in find_closure(name).files}
    gc.freeze()  # a collection in a fork would copy every page of what is shared
    return {file: _changed(file) for file in files}


def _changed(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116  of two thousand files before each build
    except OSError:
        return 0


class _Forks:
    """The processes that were forked and have not ended.

    Args:
        worker: Where messages come from.
        sources: Files that this process has read, by the time of their change.
    """

    def __init__(self, worker: socket.socket, sources: dict[str, int]) -> None:
        self._worker, self._sources = worker, sources
        self._running: dict[int, int] = {}
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> bool:
        """Forks a process for each message. Returns True in a fork, and False when there is no more to do."""
        while True:
            ready, _, _ = select.select([self._worker.fileno(), self._woken], [], [])
            if self._woken in ready:
                self._reap()
            if self._worker.fileno() in ready:
                message, files, _, _ = socket.recv_fds(self._worker, 1, 3)
                if not message:
                    return False
                if self._is_stale():
                    _close(files)  # the worker sees it, and starts another server
                    self._drain()
                    return False
                if self._fork(*files):
                    return True

    def _fork(self, stdin: int, stderr: int, answers: int) -> bool:
        """Returns True in the fork."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # BLAS has threads, and knows of forks
            pid = os.fork()
        if pid:
            self._running[pid] = answers
            _tell(answers, pid)
            _close([stdin, stderr])
            return False
        waker = signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._worker.close()
        _close([self._woken, waker, answers, *self._running.values()])
        _become_build(stdin, stderr)
        return True

    def _is_stale(self) -> bool:
        """Whether a file has changed: an upgrade under a running worker must not mix old code with new keys."""
        return any(_changed(file) != then for file, then in self._sources.items())

    def _drain(self) -> None:
        """Waits for the forks that run: they would end with this process."""
        while self._running:
            select.select([self._woken], [], [])
            self._reap()

    def _reap(self) -> None:
        os.read(self._woken, 1 << 12)
        for pid, code in _ended():
            answers = self._running.pop(pid)
            _tell(answers, code)
            os.close(answers)


def _tell(answers: int, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody wants to know any more
        os.write(answers, b"%d\n" % number)


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)


def _ended() -> Iterator[tuple[int, int]]:
    """Forks that have ended, and their exit codes; below 0 the signal."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def _become_build(stdin: int, stderr: int) -> None:
    """A session of its own, with the files that were sent in place of those of this process."""
    os.setsid()
    for file, place in ((stdin, 0), (stderr, 2)):
        os.dup2(file, place)
        os.close(file)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")


def _build() -> None:
    """Reads what is to be built, and runs the command line."""
    request = json.loads(_read_line())
    follow_parent()
    os.chdir(request["folder"])
    with Path("out.json").open("wb") as out:
        os.dup2(out.fileno(), 1)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["fleetc", *request["arguments"]]
    sys.modules["__main__"].__package__ = None  # or usage errors would call it `python -m server.fleetc`
    from compiler.cli import main as run

    run()


def _read_line() -> bytes:
    """One line of standard input, and no byte more: what follows is its end, and the guardian waits for that."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            raise SystemExit(1)
        line += piece
    return bytes(line)


if __name__ == "__main__":
    main()
