"""What a process may use: its container's limits, of both versions of control groups, and not the machine's size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

import compiler
from compiler.fleet.machine import available_cpus, available_memory_bytes, free_memory_bytes
from tests.control_group import memory_group, start_in

MIB = 1 << 20
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(compiler.__file__).parents[1])}
CORES = len(os.sched_getaffinity(0))

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "31 30 0:27 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 30 0:28 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
)


def machine(root: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    """A root folder as a container sees it, on a machine of 64 GiB."""
    texts = {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts,
        "proc/meminfo": f"MemTotal:       {64 << 20} kB\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_a_machine_without_limits_is_available_whole(tmp_path: Path) -> None:
    for version, groups, mounts, files in (
        ("2", "0::/", V2, {}),
        ("2-max", "0::/", V2, {"memory.max": "max", "memory.high": "max", "cpu.max": "max 100000"}),
        (
            "1",
            "4:memory:/\n5:cpu,cpuacct:/",
            V1.format(root="/"),
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
        ),
        ("none", "", "", {}),
    ):
        root = machine(tmp_path / version, groups, mounts, files)
        assert available_memory_bytes(root) == 64 << 30, version
        assert available_cpus(root) == CORES, version


@pytest.mark.parametrize(("quota", "cpus"), [("50000 100000", 1), ("100000 100000", 1), ("9900000 100000", CORES)])
def test_version_2_limits_hold(tmp_path: Path, quota: str, cpus: int) -> None:
    root = machine(tmp_path, "0::/", V2, {"memory.max": str(700 * MIB), "memory.high": "max", "cpu.max": quota})
    assert available_memory_bytes(root) == 700 * MIB
    assert available_cpus(root) == cpus


def test_the_tightest_group_on_the_way_up_holds(tmp_path: Path) -> None:
    files = {
        "memory.max": "max",
        "build/memory.max": str(900 * MIB),
        "build/memory.high": str(800 * MIB),
        "build/job/memory.max": "max",
        "build/cpu.max": "100000 100000",
        "build/job/cpu.max": "max 100000",
        "other/memory.max": str(MIB),
    }
    root = machine(tmp_path, "0::/build/job", V2, files)
    assert available_memory_bytes(root) == 800 * MIB
    assert available_cpus(root) == 1


def test_a_group_named_by_the_hosts_path_is_found_where_the_container_mounts_it(tmp_path: Path) -> None:
    """Docker with version 1: the kernel says `/docker/abc`, and that very folder is what is mounted."""
    files = {
        "memory/memory.limit_in_bytes": str(512 * MIB),
        "cpu,cpuacct/cpu.cfs_quota_us": "100000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    for number, group in enumerate(("/docker/abc", "/elsewhere", "/../..")):
        groups = f"4:memory:{group}\n5:cpu,cpuacct:{group}"
        root = machine(tmp_path / str(number), groups, V1.format(root="/docker/abc"), files)
        assert available_memory_bytes(root) == 512 * MIB
        assert available_cpus(root) == 1


def test_free_memory_leaves_out_what_is_used_and_counts_droppable_pages(tmp_path: Path) -> None:
    used = {"memory.current": str(300 * MIB), "memory.stat": f"anon 1\ninactive_file {100 * MIB}\nslab 3"}
    root = machine(tmp_path / "v2", "0::/", V2, {"memory.max": str(500 * MIB), **used})
    assert free_memory_bytes(root) == 300 * MIB
    v1 = {
        "memory/memory.limit_in_bytes": str(500 * MIB),
        "memory/memory.usage_in_bytes": str(600 * MIB),
        "memory/memory.stat": "cache 5\ntotal_inactive_file 0",
    }
    assert free_memory_bytes(machine(tmp_path / "v1", "4:memory:/", V1.format(root="/"), v1)) == 0


def test_damaged_files_are_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\nnonsense", V2 + "\nshort - line", {"memory.max": "lots", "cpu.max": "1 0"})
    assert available_memory_bytes(root) == 64 << 30
    assert available_cpus(root) == CORES


def test_affinity_of_the_process_holds() -> None:
    command = [sys.executable, "-c", "from compiler.fleet.machine import available_cpus; print(available_cpus())"]
    one = min(os.sched_getaffinity(0))
    found = subprocess.run(
        command,
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert found.stdout.strip() == "1"


def test_nobody_asks_the_machine_past_its_container() -> None:
    """`os.cpu_count` and psutil's total are the host's; the one module that may read them is `fleet.machine`."""
    house = Path(compiler.__file__).parents[1]
    sources = [path for folder in ("compiler", "targets") for path in (house / folder).rglob("*.py")]
    asking = [
        path.relative_to(house).as_posix()
        for path in sources
        if any(call in path.read_text(encoding="utf-8") for call in ("cpu_count", "virtual_memory"))
    ]
    assert asking == ["compiler/fleet/machine.py"]


def test_a_real_control_group_limits_a_process_in_it() -> None:
    code = "from compiler.fleet.machine import *; print(available_memory_bytes(), free_memory_bytes())"
    with memory_group(700 * MIB) as group:
        process = start_in(group, [sys.executable, "-c", code], env=ENVIRONMENT)
        total, free = map(int, process.communicate(timeout=60)[0].split())
    assert total == 700 * MIB < psutil.virtual_memory().total
    assert 500 * MIB < free < 700 * MIB
