"""`fleetc serve` when its container gets less: half of the processors' time, and memory for one build of two.

Both are limits of control groups, set while requests come or before. Counted are the kernel's kills, answers by status,
and the share that is in time from three seconds after the limit on.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_load import Reply, Server, infer_request, make_body, open_loop

from serving.builds import Served, read_builds
from serving.simulate import poisson

ROOT = Path("/sys/fs/cgroup")
SETTLE_S = 3.0
PERIOD_US = 100_000


@dataclass(frozen=True)
class Group:
    """Control groups of one server, of version 1 or 2.

    Args:
        cpu: Folder that limits processor time.
        memory: Folder that limits memory; the same in version 2.
    """

    cpu: Path
    memory: Path

    @property
    def is_second(self) -> bool:
        """Whether it is version 2."""
        return self.cpu == self.memory

    def before(self) -> Sequence[str]:
        """What a command line begins with that is to be in it."""
        enter = "".join(f"echo $$ > {folder}/cgroup.procs && " for folder in {self.cpu, self.memory})
        return ("sh", "-c", f'{enter}exec "$@"', "sh")

    def limit_cpus(self, cpus: float) -> None:
        """Gives it so many processors' worth of time."""
        quota = str(round(cpus * PERIOD_US))
        if self.is_second:
            (self.cpu / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (self.cpu / "cpu.cfs_quota_us").write_text(quota)

    def limit_memory(self, limit_bytes: int) -> None:
        """Bounds its memory."""
        name = "memory.max" if self.is_second else "memory.limit_in_bytes"
        (self.memory / name).write_text(str(limit_bytes))

    def kills(self) -> int:
        """How many processes the kernel killed for memory."""
        name = "memory.events" if self.is_second else "memory.oom_control"
        rows = (line.split() for line in (self.memory / name).read_text().splitlines())
        return sum(int(row[1]) for row in rows if row[0] == "oom_kill")


@dataclass(frozen=True)
class Change:
    """What happens so many seconds after the load began."""

    after_s: float
    make: Callable[[], None]


@contextmanager
def control_group() -> Iterator[Group]:
    """New groups, which are removed when their last process is gone; needs root and a writable hierarchy."""
    name = f"fleetc-bench-{uuid.uuid4().hex[:12]}"
    first = [ROOT / "cpu", ROOT / "memory"]
    folders = [folder / name for folder in (first if (ROOT / "memory").is_dir() else [ROOT, ROOT])]
    for folder in dict.fromkeys(folders):
        folder.mkdir()
    try:
        yield Group(*folders)
    finally:
        for folder in dict.fromkeys(folders):
            _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(100):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def limits(folder: Path, *, slo_s: float, seconds: float, rate: float | None) -> dict[str, Any]:
    """Half of the processors' time from a third of the run on; and memory for less than both builds.

    Args:
        folder: An artifact with a ladder.
        slo_s: Time of a request.
        seconds: Length of each run.
        rate: Requests a second; by default 0.7 of what the first build did when it was measured.
    """
    served = read_builds([folder])
    rung = served.builds[0].rung
    rate = rate or 0.7 / min(taken / size for size, taken in rung.service_s.items())
    arrivals = poisson(rate, seconds, seed=6)
    return {
        "requests_per_s": round(rate, 1),
        "slo_ms": slo_s * 1e3,
        "load_before": os.getloadavg(),
        "cpu": half_the_processors(folder, served, arrivals, slo_s=slo_s, seconds=seconds),
        "memory": less_than_two_builds(folder, served, arrivals, slo_s=slo_s),
        "load_after": os.getloadavg(),
    }


def half_the_processors(
    folder: Path, served: Served, arrivals: Sequence[float], *, slo_s: float, seconds: float
) -> dict[str, Any]:
    """The quota is halved after a third of the run."""
    cpus = len(os.sched_getaffinity(0))
    with control_group() as group:
        group.limit_cpus(cpus)
        halved = Change(seconds / 3, lambda: group.limit_cpus(cpus / 2))
        replies, begun = _run(group, folder, served, arrivals, slo_s, halved)
        return {"cpus": [cpus, cpus / 2], **_counted(replies, begun + seconds / 3, slo_s), "kills": group.kills()}


def less_than_two_builds(folder: Path, served: Served, arrivals: Sequence[float], *, slo_s: float) -> dict[str, Any]:
    """What front and builds take is measured first; the limit is that without half of the larger build."""
    server = Server(folder, slo_s)
    try:
        time.sleep(2.0 * len(served.builds))
        front, *builds = server.memory_mib()
    finally:
        server.close()
    limit_mib = front + sum(builds) - max(builds) // 2
    with control_group() as group:
        group.limit_memory(limit_mib << 20)
        replies, begun = _run(group, folder, served, arrivals, slo_s)
        return {
            "front_and_builds_mib": [front, *builds],
            "limit_mib": limit_mib,
            **_counted(replies, begun, slo_s),
            "kills": group.kills(),
        }


def _run(
    group: Group, folder: Path, served: Served, arrivals: Sequence[float], slo_s: float, change: Change | None = None
) -> tuple[list[Reply], float]:
    """A server in the group under load; when the load began."""
    server = Server(folder, slo_s, before=group.before())

    async def load() -> tuple[list[Reply], float]:
        if change:
            asyncio.get_running_loop().call_later(change.after_s, change.make)
        begun = time.monotonic()
        return await open_loop(server.port, infer_request(*make_body(served)), arrivals), begun

    try:
        time.sleep(2.0 * len(served.builds))
        return asyncio.run(load())
    finally:
        server.close()


def _counted(replies: Sequence[Reply], limited_s: float, slo_s: float) -> dict[str, Any]:
    later = [reply for reply in replies if reply.at_s >= limited_s + SETTLE_S]
    good = [reply for reply in later if reply.status == 200 and reply.seconds <= slo_s]
    statuses = sorted({reply.status for reply in replies})
    variants = sorted({reply.variant for reply in good})
    return {
        "offered": len(replies),
        "statuses": {str(status): sum(reply.status == status for reply in replies) for status in statuses},
        "in_time_before": _share([r for r in replies if r.at_s < limited_s], slo_s),
        "in_time_after_3_s": round(len(good) / max(1, len(later)), 5),
        "answers_after_3_s": {variant: sum(reply.variant == variant for reply in good) for variant in variants},
    }


def _share(replies: Sequence[Reply], slo_s: float) -> float | None:
    good = sum(reply.status == 200 and reply.seconds <= slo_s for reply in replies)
    return round(good / len(replies), 5) if replies else None
