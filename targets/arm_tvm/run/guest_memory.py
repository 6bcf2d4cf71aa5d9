"""Resident memory of an emulated program, without what QEMU itself takes."""

from __future__ import annotations

import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from compiler.target import ToolchainFailed

SAMPLE_S = 0.02
"""How often the maps are looked at; a peak shorter than this may be missed."""
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)$")
_KIB = 1024


def guest_resident_bytes(smaps: str) -> int:
    """Resident bytes of the program that a QEMU process runs, from that process's `/proc/PID/smaps`.

    QEMU maps the program's own code without the right to execute it, because it executes translations. So what
    is executable is QEMU's: its code cache, which no file backs, and all mappings of a file of which one is
    executable. Its heap and its stack have names. What is left is the program's, with a few stacks of QEMU's threads.
    """
    resident: dict[str, int] = defaultdict(int)
    of_qemu = {"[heap]", "[stack]", "[vdso]", "[vvar]", "[vsyscall]"}
    name, rights = "", ""
    for line in smaps.splitlines():
        if mapping := _MAPPING.match(line):
            rights, name = mapping[1], mapping[2]
            if "x" in rights and name:
                of_qemu.add(name)
        elif line.startswith("Rss:") and not (not name and "x" in rights):
            resident[name] += int(line.split()[1]) * _KIB
    return sum(count for name, count in resident.items() if name not in of_qemu)


def watch_guest(command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """Runs a program under QEMU to its end; its largest resident memory that was seen, in bytes, and what it printed.

    Of a program that ends before it is looked at, the memory is 0.

    Raises:
        ToolchainFailed: It failed or hung.
    """
    deadline, peak = time.monotonic() + timeout_s, 0
    with (
        TemporaryFile("w+", encoding="utf-8") as printed,
        subprocess.Popen(command, env=dict(environment), stdout=printed, stderr=subprocess.DEVNULL) as process,
    ):
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise ToolchainFailed(f"the bundle did not end within {timeout_s:.0f} s")
            peak = max(peak, guest_resident_bytes(_smaps(process.pid)))
            time.sleep(SAMPLE_S)
        if process.returncode:
            raise ToolchainFailed(f"the memory of the bundle could not be measured: exit status {process.returncode}")
        printed.seek(0)
        return peak, printed.read()


def _smaps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return ""
