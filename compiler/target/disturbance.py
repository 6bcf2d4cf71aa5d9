"""What else a machine did while something was timed on it: other work, the hypervisor, a changing clock (Linux).

And what is avoidable of it: threads of this very process that still wait for more work.
"""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WAITED = 0.05
"""Share of the time that our threads waited for a processor; a quiet machine shows less than a hundredth."""

PRESSED = 0.10
"""Share of the time that some process waited for a processor (PSI); on a quiet machine our own threads sometimes do."""

STOLEN = 0.02
"""Share of the processors' time that a hypervisor gave to others."""

CLOCK_CHANGE = 0.10
"""Relative change of the clock between beginning and end."""

AWAKE_AT_MOST_S, LOOK_S, RESTING = 0.5, 0.005, 0.1
"""How long threads may stay awake behind a run, how long it is looked at what they use, and what share is none."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Conditions:
    """Counters of a machine and of this process at one moment; None where the system does not report one.

    Args:
        time_s: The moment, in seconds of a clock that never goes back.
        waited_s: Seconds that this process's threads have waited for a processor.
        pressed_s: Seconds in which some process waited for one.
        stolen_s: Seconds that a hypervisor took from a processor, the mean of all.
        switches: Times that this process or its children had to give up a processor.
        clock_mhz: Mean clock of the processors.
    """

    time_s: float
    waited_s: float | None
    pressed_s: float | None
    stolen_s: float | None
    switches: int
    clock_mhz: float | None


def conditions(root: Path = Path("/")) -> Conditions:
    """The counters now.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    usage = [resource.getrusage(who).ru_nivcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Conditions(
        time.monotonic(), _waited_s(root), _pressed_s(root), _stolen_s(root), sum(usage), _clock_mhz(root)
    )


def disturbances(before: Conditions, after: Conditions, *, threads: int) -> str:
    """What disturbed a measurement between two moments, in words; empty where nothing did.

    Args:
        before: Counters when it began.
        after: Counters when it ended.
        threads: Threads that were measured.
    """
    return "; ".join(_disturbances(before, after, max(1, threads)))


def let_threads_rest() -> None:
    """Waits until the threads of the one that ran are asleep.

    A runtime's threads spin for a while behind a run, ready for the next one (ONNX Runtime's for 50 ms and more); those
    of the other build would wait for them, as they never do where a device runs one build.
    """
    until = time.monotonic() + AWAKE_AT_MOST_S
    while time.monotonic() < until:
        before = time.process_time()
        time.sleep(LOOK_S)
        if time.process_time() - before < LOOK_S * RESTING and not _others_ready():
            return


def _others_ready(root: Path = Path("/")) -> bool:
    """Whether another thread of this process is ready to run: on a busy machine it may not get a processor just now."""
    own = str(threading.get_native_id())
    stats = [_text(task / "stat") for task in (root / "proc/self/task").glob("*") if task.name != own]
    return any(stat.rpartition(")")[2].split()[:1] == ["R"] for stat in stats)


def _disturbances(before: Conditions, after: Conditions, threads: int) -> Iterator[str]:
    elapsed_s = max(after.time_s - before.time_s, 1e-6)
    switches = after.switches - before.switches
    waited = _share(before.waited_s, after.waited_s, elapsed_s * threads)
    pressed = _share(before.pressed_s, after.pressed_s, elapsed_s)
    stolen = _share(before.stolen_s, after.stolen_s, elapsed_s)
    if waited is not None and waited > WAITED:
        yield f"its threads waited for a processor {waited:.0%} of the time, and lost one {switches} times"
    if pressed is not None and pressed > PRESSED:
        yield f"work waited for a processor {pressed:.0%} of the time"
    if stolen is not None and stolen > STOLEN:
        yield f"the hypervisor gave {stolen:.0%} of the processors' time to others"
    if before.clock_mhz and after.clock_mhz and abs(after.clock_mhz / before.clock_mhz - 1) > CLOCK_CHANGE:
        yield f"the clock went from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz"


def _share(before: float | None, after: float | None, whole: float) -> float | None:
    return None if before is None or after is None else min(1.0, max(0.0, after - before) / whole)


def _waited_s(root: Path) -> float | None:
    """The second number of a thread's `schedstat`: nanoseconds that it was ready and did not run."""
    waits = [_text(task / "schedstat").split() for task in sorted((root / "proc/self/task").glob("*"))]
    known = [int(fields[1]) for fields in waits if len(fields) == 3]
    return sum(known) / 1e9 if known else None


def _pressed_s(root: Path) -> float | None:
    match = re.search(r"^some .*total=(\d+)", _text(root / "proc/pressure/cpu"), re.MULTILINE)
    return int(match[1]) / 1e6 if match else None


def _stolen_s(root: Path) -> float | None:
    text = _text(root / "proc/stat")
    fields, processors = text.partition("\n")[0].split(), len(re.findall(r"^cpu\d+ ", text, re.MULTILINE))
    return int(fields[8]) / _TICKS_PER_S / max(1, processors) if len(fields) > 8 and fields[0] == "cpu" else None


def _clock_mhz(root: Path) -> float | None:
    """The governor's figure, where there is one: what a virtual machine's /proc/cpuinfo says never changes."""
    folder = root / "sys/devices/system/cpu"
    texts = [_text(path) for path in folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [int(text) / 1e3 for text in texts if text.isdecimal()]
    return sum(clocks) / len(clocks) if clocks else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # a thread that has just ended, or a system without this file
        return ""
