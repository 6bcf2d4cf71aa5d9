"""What a command costs: wall time, processor time and memory of its process and all that it starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.02
"""How often memory is looked at; a peak shorter than this may be missed."""

MEASURED = {
    "wall_s": "start of the process to its end, as its parent sees it",
    "cpu_s": "user and system time of the process and of every child it waited for (getrusage)",
    "peak_rss_bytes": "largest sum, over the process and its descendants, of resident memory, looked at every 20 ms; "
    "pages of mapped files count, in each process that holds them",
    "peak_private_bytes": "the same for anonymous and shared memory alone (RssAnon + RssShmem): what no file backs, so "
    "that the kernel cannot drop it",
    "largest_process_bytes": "ru_maxrss: largest resident memory of any single process of the tree, exact",
}


@dataclass(frozen=True)
class Cost:
    """One run; see `MEASURED`."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_private_bytes: int
    largest_process_bytes: int
    stdout: str

    def figures(self) -> dict[str, float | int]:
        """The numbers, ready for JSON."""
        return {
            name: round(value, 3) if isinstance(value := getattr(self, name), float) else value for name in MEASURED
        }


def run_measured(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> Cost:
    """Runs a command to its end; what it writes to stderr is shown only if it fails.

    Raises:
        RuntimeError: It ended with a code other than 0.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd) as process:
        collected: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda name=name, pipe=pipe: collected.update({name: pipe.read()}))
            for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr))
            if pipe is not None
        ]
        peaks = _Peaks(process.pid)
        for thread in (*readers, peaks):
            thread.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for thread in (*readers, peaks):
            thread.join()
    if process.returncode != 0:
        said = collected["stderr"].decode(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{said}")
    return Cost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peaks.resident,
        peak_private_bytes=peaks.private,
        largest_process_bytes=usage.ru_maxrss * 1024,
        stdout=collected["stdout"].decode(),
    )


class _Peaks(threading.Thread):
    """Watches the memory of a process and its descendants until it is gone."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = pid
        self.resident = self.private = 0

    def run(self) -> None:
        while (root := _memory(self._root)) is not None:
            found = [root, *(memory for pid in _descendants(self._root) if (memory := _memory(pid)) is not None)]
            self.resident = max(self.resident, sum(resident for resident, _ in found))
            self.private = max(self.private, sum(private for _, private in found))
            time.sleep(SAMPLE_S)


def _descendants(pid: int) -> Iterator[int]:
    children = list[int]()
    with contextlib.suppress(OSError):  # it ended between two looks
        for place in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, place.read_text(encoding="ascii").split())
    for child in children:
        yield child
        yield from _descendants(child)


def _memory(pid: int) -> tuple[int, int] | None:
    """Resident bytes, and those of them that no file backs; None for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon", "RssShmem")))
    if "VmRSS" not in fields:
        return None
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return kib["VmRSS"] * 1024, (kib["RssAnon"] + kib["RssShmem"]) * 1024
