"""What this process may use of the machine it is on: processors and memory, as its container is limited.

processors   those the process may run on (affinity, cpusets), and no more than the control group's CPU quota
memory       the machine's, and no more than the limit of the control group or of any group above it

Both versions of control groups are read. A container may see its group under another path than the kernel names it
by, so the path below the mount point is worked out from /proc/self/mountinfo, as cgroups(7) describes it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path("/")


def available_cpus(root: Path = _ROOT) -> int:
    """How many processors this process may keep busy, ≥ 1.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    quotas = [quota for group in _groups(root, "cpu") if (quota := group.cpu_quota()) is not None]
    # rounded up, as the JVM and Go do: half a processor left idle costs more than a thread that is held up now and then
    return max(1, min([_affinity(), *map(math.ceil, quotas)]))


def available_memory_bytes(root: Path = _ROOT) -> int:
    """How much memory this process and its children may have in all, in bytes.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    limits = [limit for group in _groups(root, "memory") if (limit := group.memory_limit()) is not None]
    return min([_total_bytes(root), *limits])


def free_memory_bytes(root: Path = _ROOT) -> int:
    """How much memory this process can still take now, in bytes, ≥ 0.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    free = [
        limit - group.memory_used() for group in _groups(root, "memory") if (limit := group.memory_limit()) is not None
    ]
    return max(0, min([psutil.virtual_memory().available, *free]))


@dataclass(frozen=True)
class _Group:
    """The folder of one control group.

    Args:
        folder: The folder.
        version: 1 or 2: the two have other files.
    """

    folder: Path
    version: int

    def cpu_quota(self) -> float | None:
        """Processors' worth of time; None where there is no limit."""
        if self.version == 2:
            quota, _, period = _read(self.folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(self.folder / "cpu.cfs_quota_us"), _read(self.folder / "cpu.cfs_period_us")
        # no limit is written as `max` (version 2) or -1 (version 1)
        return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None

    def memory_limit(self) -> int | None:
        """Bytes; None where there is no limit. Version 1 writes a number beyond any machine's memory for that."""
        # beyond `memory.high` the kernel slows a group down until it hardly moves, so it is a limit like `memory.max`
        names = ("memory.max", "memory.high") if self.version == 2 else ("memory.limit_in_bytes",)
        limits = [int(text) for name in names if (text := _read(self.folder / name)).isdecimal()]
        return min(limits, default=None)

    def memory_used(self) -> int:
        """Bytes in use, without the pages of files that the kernel can drop at once."""
        usage, row = ("memory.current", "") if self.version == 2 else ("memory.usage_in_bytes", "total_")
        droppable = re.search(rf"^{row}inactive_file (\d+)$", _read(self.folder / "memory.stat"), re.MULTILINE)
        used = _read(self.folder / usage)
        return max(0, int(used) - (int(droppable[1]) if droppable else 0)) if used.isdecimal() else 0


def _groups(root: Path, controller: str) -> Iterator[_Group]:
    """This process's control group and those above it that can be seen, of every hierarchy with the controller."""
    paths = _group_paths(root, controller)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        if version not in paths or (version == 1 and controller not in kind[2].split(",")):
            continue
        mount = root / _unescaped(fields[4]).lstrip("/")
        below = _below(paths[version], _unescaped(fields[3]))
        yield from (_Group(mount / part, version) for part in (below, *below.parents))


def _group_paths(root: Path, controller: str) -> dict[int, str]:
    """Version → path of this process's group, as the kernel names it."""
    paths: dict[int, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _below(path: str, mounted: str) -> Path:
    """A group's path below the mount point; the mount point itself where the group is outside of what is mounted."""
    group = Path(path)
    is_inside = group.is_relative_to(mounted) and ".." not in group.parts
    return group.relative_to(mounted) if is_inside else Path()


def _unescaped(text: str) -> str:
    r"""A path of mountinfo, which writes a space as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1  # no Linux: such a system has neither affinity nor control groups


def _total_bytes(root: Path) -> int:
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(total[1]) << 10 if total else int(psutil.virtual_memory().total)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no such controller, no such system, or nothing that a container may see
        return ""
