"""A real control group for tests, where this system lets us make one."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PLACES = ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"))
"""Where version 2 and version 1 are mounted, and how they call a limit of memory."""


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A control group with a limit of memory; skips the test where none can be made."""
    for parent, name in PLACES:
        if not (parent / "cgroup.procs").exists():
            continue
        group = parent / f"fleetc-test-{uuid.uuid4().hex}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit_bytes))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        try:
            yield group
        finally:
            _remove(group)
        return
    pytest.skip("no control group with a limit of memory can be made here")


def start_in(group: Path, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A process that is in the group before its program begins."""
    enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["sh", "-c", enter, "sh", *command], text=True, **{**pipes, **options})


def _remove(group: Path) -> None:
    """Waits until the last process of the group is gone: before that the kernel refuses."""
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)
