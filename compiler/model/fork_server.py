"""A process that others are forked from: it has imported what each of them needs, so that their work begins at once.

`compiler.model.forks` starts it, with a socket as its standard input. Each message there brings four files: the
standard input, output and error of a new process, and where its process id and, later, its exit code are written. A
fork reads from its standard input what it is to do; all of its processes end when the other end of that is closed, or
when this process ends.

`multiprocessing.forkserver` forks in the same way. It is not used because it imports the parent's main module in every
process, so that a script that calls fleetc without a guard would run once more, and because its processes outlive a
killed parent.
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

FORK, LEAVE = b"f", b"l"
"""Messages: with four files, fork a process; with none, end as soon as every fork has ended."""


def main(name: str, prepare: str, *arguments: str) -> None:
    """Serves until the parent is gone or its sources have changed; in a forked process, does the work.

    Args:
        name: What `ps` and `top` call a forked process.
        prepare: `MODULE:FUNCTION` that imports what the work needs, and returns the files that must not change.
        arguments: What that function is given.
    """
    parent = socket.socket(fileno=os.dup(0))
    sources = {file: _changed(file) for file in _call(prepare, *arguments)}
    gc.freeze()  # a collection in a fork would copy every page of what is shared
    if _Forks(parent, sources, name).serve():
        _work()


def _call(function: str, *arguments: str) -> Iterable[str]:
    """What `MODULE:FUNCTION` returns."""
    module, _, attribute = function.partition(":")
    result: Iterable[str] = getattr(importlib.import_module(module), attribute)(*arguments)
    return result


def _changed(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116  of two thousand files before each build
    except OSError:
        return 0


class _Forks:
    """The processes that were forked and have not ended.

    Args:
        parent: Where messages come from.
        sources: Files that this process has read, by the time of their change.
        name: What forked processes are called.
    """

    def __init__(self, parent: socket.socket, sources: dict[str, int], name: str) -> None:
        self._parent, self._sources, self._name = parent, sources, name
        self._running: dict[int, int] = {}
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> bool:
        """Forks a process for each message. Returns True in a fork, and False when there is no more to do."""
        while True:
            ready, _, _ = select.select([self._parent.fileno(), self._woken], [], [])
            if self._woken in ready:
                self._reap()
            if self._parent.fileno() not in ready:
                continue
            message, files, _, _ = socket.recv_fds(self._parent, 1, 4)
            if message != FORK or self._is_stale():
                _close(files)  # where a source has changed, the parent sees it, and starts another server
                if message:
                    self._drain()
                return False
            if self._fork(files[:3], files[3]):
                return True

    def _fork(self, streams: list[int], answers: int) -> bool:
        """Returns True in the fork."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # BLAS has threads, and knows of forks
            pid = os.fork()
        if pid:
            self._running[pid] = answers
            _tell(answers, pid)
            _close(streams)
            return False
        waker = signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._parent.close()
        _close([self._woken, waker, answers, *self._running.values()])
        _become(streams, self._name)
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


def _become(streams: list[int], name: str) -> None:
    """A session of its own, with the files that were sent in place of those of this process."""
    os.setsid()
    for place, file in enumerate(streams):
        os.dup2(file, place)
        os.close(file)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="ascii")


def _work() -> None:
    """Reads what is to be done, and does it."""
    request = json.loads(_read_line())
    follow_parent()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    importlib.invalidate_caches()
    _call(request["function"], *request["arguments"])


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
    main(*sys.argv[1:])
