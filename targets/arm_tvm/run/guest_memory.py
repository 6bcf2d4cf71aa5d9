"""Resident memory of an emulated program, without what QEMU itself takes."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from compiler.target import ToolchainFailed

SAMPLE_S = 0.05
"""How often the maps are looked at, which takes some milliseconds; what is given back within this may be missed."""
_MAPPING = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)$")
GUEST_END = 1 << 40
"""QEMU places a 64-bit program from 0x5500000000 (2^38.4) on; what it takes itself the kernel places above 2^46."""
_KIB = 1024
_PIPE_READ = 1 << 16


def guest_resident_bytes(smaps: str) -> int:
    """Resident bytes of the program that a QEMU process runs, from that process's `/proc/PID/smaps`.

    QEMU maps the program's own code without the right to execute it, because it executes translations. So what
    is executable is QEMU's: its code cache, which no file backs, and all mappings of a file of which one is
    executable. Its heap and its stack have names; what it keeps for each of the program's threads, a megabyte of
    them, is told by its address.
    """
    resident: dict[tuple[bool, str], int] = defaultdict(int)
    of_qemu = {"[heap]", "[stack]", "[vdso]", "[vvar]", "[vsyscall]"}
    address, rights, name = 0, "", ""
    for line in smaps.splitlines():
        if mapping := _MAPPING.match(line):
            address, rights, name = int(mapping[1], 16), mapping[2], mapping[3]
            if "x" in rights and name:
                of_qemu.add(name)
        elif line.startswith("Rss:") and not (not name and "x" in rights):
            resident[address < GUEST_END, name] += int(line.split()[1]) * _KIB
    by_place = [
        sum(count for (low, name), count in resident.items() if low is own and name not in of_qemu)
        for own in (True, False)
    ]
    # A QEMU that had to place the program elsewhere has nothing of it below.
    return by_place[0] or by_place[1]


def weigh_guest(
    command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float, output: Path
) -> tuple[int, bytes]:
    """Runs a program under QEMU to its end; its largest resident memory that was seen, in bytes, and what it wrote.

    The program's output is a pipe that is full until the memory was looked at: the program waits there with all that
    its work took, however short that was. Looks before that one find what was given back on the way.

    Args:
        command: QEMU's command line with the program.
        environment: All of its environment.
        timeout_s: After how long it is stopped.
        output: The file that the program writes when its work is done; nothing is there yet.

    Raises:
        ToolchainFailed: It failed or hung, or its memory cannot be looked at.
    """
    deadline = time.monotonic() + timeout_s
    with (
        _full_pipe(output) as (pipe, padding),
        TemporaryFile("w+", encoding="utf-8") as told,
        subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=told) as process,
    ):
        try:
            peak = _watch(process, output, deadline)
            written = _drain(process, pipe, deadline)[padding:]
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            told.seek(0)
            raise ToolchainFailed(f"the bundle failed: {reason_of(process.returncode, told.read())}")
    if not peak:
        raise ToolchainFailed("the memory of the bundle could not be looked at")
    return peak, written


def reason_of(code: int, errors: str) -> str:
    """How a bundle's program ended, of its exit status and what it wrote to stderr."""
    crash = f"killed by {signal.Signals(-code).name}; " if code < 0 else ""
    reason = errors.strip().removeprefix("run: ") or f"exit status {code}"
    return f"{crash}{reason[-1000:]}"


def _watch(process: subprocess.Popen[bytes], output: Path, deadline: float) -> int:
    """The largest memory that is seen until the program has opened its output, the last time after that."""
    peak = 0
    while process.poll() is None:
        # asked before the look, which so sees the work done
        is_done = _has_open(process.pid, output)
        peak = max(peak, guest_resident_bytes(_smaps(process.pid)))
        if is_done:
            break
        _refuse_late(deadline)
        time.sleep(SAMPLE_S)
    return peak


def _drain(process: subprocess.Popen[bytes], pipe: int, deadline: float) -> bytes:
    """All that is in the pipe and comes through it until the program ends."""
    parts: list[bytes] = []
    while True:
        has_ended = process.poll() is not None
        try:
            parts.append(os.read(pipe, _PIPE_READ))
        except BlockingIOError:
            if has_ended:
                return b"".join(parts)
            _refuse_late(deadline)
            select.select([pipe], [], [], SAMPLE_S)


def _refuse_late(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise ToolchainFailed("the bundle did not end in time")


@contextmanager
def _full_pipe(place: Path) -> Iterator[tuple[int, int]]:
    """A named pipe that takes nothing more until it is read, open for both; and how many bytes fill it."""
    os.mkfifo(place)
    pipe, padding = os.open(place, os.O_RDWR | os.O_NONBLOCK), 0
    try:
        with suppress(BlockingIOError):
            while True:
                padding += os.write(pipe, bytes(select.PIPE_BUF))
        yield pipe, padding
    finally:
        os.close(pipe)


def _has_open(pid: int, place: Path) -> bool:
    """Whether a process has opened a file."""
    wanted = place.stat()
    with suppress(OSError):  # it has just ended, or closed a file meanwhile
        return any(os.path.samestat(opened.stat(), wanted) for opened in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _smaps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return ""
