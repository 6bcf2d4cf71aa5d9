"""Child processes with limits: started, watched and killed together with every tool that they start.

What a child prints goes to `log.txt` in its folder; its end is part of the message when it fails. Its standard input
is a pipe that nobody writes to: when the parent is gone, however it ended, the pipe closes, and the child ends
(`compiler.model.child`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psutil

from compiler.fleet.machine import available_memory_bytes
from compiler.model.forks import Fork, ForkServer

# short beside any build, and 20 looks a second cost no measurable time
POLL_S = 0.05
FAMILY_S = 0.25
"""How long a list of a child's children is good for."""

FIRST_TO_GO = "1000"
"""The kernel's highest `oom_score_adj`."""

# of a crash: what fits on a screen below the message
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 16384
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and other control characters, which a vendor's log may hold and a message must not."""

MIB = 1 << 20
LOG = "log.txt"
Child: TypeAlias = subprocess.Popen[bytes] | Fork
_running: set[Child] = set()
"""Children that were started and not ended yet, for an interrupt that reaches another thread than theirs."""

SHARE = 0.9
"""Part of the available memory that this process and a child may have together: the rest is the file system's."""


@dataclass(frozen=True)
class ChildLimits:
    """What one child process may use.

    Args:
        timeout_s: Wall time in seconds.
        memory_mib: Resident memory of the child and its own children, in MiB.
    """

    timeout_s: float = 1800.0
    memory_mib: int = 0

    def memory_bytes(self) -> int:
        """The memory limit in bytes.

        Where none was set: nine tenths of what this process may have in all, less what it holds itself. Beyond that
        the system would look for a process to kill, and might find the parent.
        """
        own = psutil.Process().memory_info().rss
        return self.memory_mib * MIB or max(MIB, int(available_memory_bytes() * SHARE) - own)


def start_child(module: str, folder: Path, *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Starts `python -m MODULE FOLDER`, whose output goes to the folder's `log.txt`.

    Args:
        module: What the child runs; it must watch its standard input, see above.
        folder: Its scratch folder.
        pass_fds: Pipes that it inherits.
    """
    # -P: the current folder is no place for code
    return start_program([sys.executable, "-P", "-m", module, str(folder)], folder, pass_fds=pass_fds)


def start_program(command: Sequence[str], folder: Path, *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Starts a program, whose output goes to the folder's `log.txt`. Raises OSError where it cannot be started."""
    with (folder / LOG).open("wb") as output:
        child = subprocess.Popen(  # a session of its own, so that killing it takes the tools it started along
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    _note(child)
    return child


def fork_child(forks: ForkServer, function: str, folder: Path, *arguments: str) -> Fork:
    """Has a process forked that calls `MODULE:FUNCTION` with the folder and what is given beside it.

    Its output goes to the folder's `log.txt`.

    Raises:
        ToolchainFailed: No process can be forked.
    """
    with (folder / LOG).open("wb") as output:
        child = forks.fork(
            function,
            [str(folder), *arguments],
            folder=Path.cwd(),
            environment=os.environ,
            output=output.fileno(),
            errors=output.fileno(),
        )
    _note(child)
    return child


def _note(child: Child) -> None:
    _running.add(child)
    # where memory runs out before we look, the kernel shall choose the child and not us (Linux; any process may do so)
    with contextlib.suppress(OSError):
        Path(f"/proc/{child.pid}/oom_score_adj").write_text(FIRST_TO_GO, encoding="ascii")


class Watch:
    """Time and memory of a running child, held against its limits.

    Args:
        child: The process.
        child_limits: What it may use.
    """

    def __init__(self, child: Child, child_limits: ChildLimits) -> None:
        self._limits, self._ceiling, self._family = child_limits, child_limits.memory_bytes(), Family(child.pid)
        self.restart()

    def restart(self) -> None:
        """Begins to count the time anew."""
        self._deadline = time.monotonic() + self._limits.timeout_s

    def broken_limit(self) -> str:
        """Which limit is broken, in words that follow the name of what was run; empty if none is."""
        if time.monotonic() > self._deadline:
            return f"did not finish within {self._limits.timeout_s:g} s"
        used = self._family.resident_bytes()
        if used > self._ceiling:
            return f"used {used // MIB} MiB of memory, more than its limit of {self._ceiling // MIB} MiB"
        return ""


class Family:
    """A process and its children, whose memory is looked at again and again.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._members, self._found_at = pid, tuple[psutil.Process, ...](), float("-inf")

    def resident_bytes(self) -> int:
        """Resident memory of them all, in bytes."""
        total = 0
        with contextlib.suppress(psutil.Error):  # one ended between two looks
            if time.monotonic() - self._found_at > FAMILY_S:
                self._members = (psutil.Process(self._pid), *descendants(self._pid))
                self._found_at = time.monotonic()
        for process in self._members:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one. Raises psutil.Error where it is gone."""
    if not Path(f"/proc/{pid}/task/{pid}/children").exists():  # another system, or a kernel that does not list them
        return psutil.Process(pid).children(recursive=True)
    found, waiting = list[psutil.Process](), [pid]
    while waiting:
        # psutil would read the parent of every process of the machine: a tenth of a build's own time on a busy one
        for child in _children(waiting.pop()):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                found.append(psutil.Process(child))
                waiting.append(child)
    return found


def _children(pid: int) -> list[int]:
    """The processes that the threads of one have started; none of a process that has ended."""
    children: list[int] = []
    with contextlib.suppress(OSError):  # its folder is gone as soon as it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # and a thread's as soon as that has
                children += map(int, (task / "children").read_text(encoding="ascii").split())
    return children


def kill_child(child: Child) -> None:
    """Kills a child and all tools of its session, and waits for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin:
        child.stdin.close()
    child.wait()
    if isinstance(child, Fork):
        child.close()
    _running.discard(child)


def kill_children() -> None:
    """Kills every child that this process has started and not ended yet; whoever waits for one sees it end."""
    for child in tuple(_running):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def death_of(code: int) -> str:
    """How a process ended, from its return code."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"crashed with signal {name}"
    return f"ended with exit code {code} and no result"


def log_tail(folder: Path) -> str:
    """The last lines a child wrote into its `log.txt`, to stand behind a message; empty if it wrote nothing."""
    with (folder / LOG).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = CONTROL.sub("", text).strip().splitlines()[-LOG_TAIL_LINES:]
    return "; last lines of its log:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""
