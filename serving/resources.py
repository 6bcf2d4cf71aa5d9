"""Whether memory is short: the kernel's pressure stall information, and what is free below the container's limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from compiler.fleet.machine import free_memory_bytes

STALLED_PCT = 10.0
"""Share of the last ten seconds in which somebody waited for memory, beyond which it is short."""

LEAST_FREE_BYTES = 64 << 20
"""Free memory below which it is short: a batch in flight and the front's own buffers fit in there."""

PRESSURE_FILES = ("proc/pressure/memory", "sys/fs/cgroup/memory.pressure")


@dataclass(frozen=True)
class Memory:
    """Memory at one moment.

    Args:
        free_bytes: What can still be taken below every limit.
        stalled_pct: Share of the last ten seconds in which somebody waited for memory; 0 where the kernel says nothing.
    """

    free_bytes: int
    stalled_pct: float

    @property
    def is_short(self) -> bool:
        """Whether a build should give its memory back."""
        return self.free_bytes < LEAST_FREE_BYTES or self.stalled_pct > STALLED_PCT

    def has_room(self, size_bytes: int) -> bool:
        """Whether a build of that size can be loaded."""
        return not self.is_short and self.free_bytes > size_bytes + 2 * LEAST_FREE_BYTES


def read_memory(root: Path = Path("/")) -> Memory:
    """Memory now.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    return Memory(free_memory_bytes(root), max(_stalled_pct(root / name) for name in PRESSURE_FILES))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _stalled_pct(path: Path) -> float:
    try:
        match = re.search(r"^some avg10=([\d.]+)", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0.0
    return float(match[1]) if match else 0.0
