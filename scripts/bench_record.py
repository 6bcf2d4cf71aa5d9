"""What every recorded benchmark says of itself: commit, machine and versions; and how a bar is written down."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent

Figures = dict[str, Any]


def bar(what: str, found: float, limit: float, *, stated: bool = True) -> Figures:
    """A figure, the bar it must not exceed, and whether it holds; `stated` is False for an aim of our own."""
    return {"what": what, "found": round(found, 3), "at_most": limit, "is_met": found <= limit, "is_stated": stated}


def commit() -> Figures:
    """The commit of this repository, and whether files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    return {"commit": head, "has_uncommitted_changes": bool(changes.strip())}


def machine() -> Figures:
    """Processor, cores this process may use, memory and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    memory = psutil.virtual_memory().total >> 20
    cores = len(os.sched_getaffinity(0))
    cpu = next(names, platform.processor())
    return {"cpu": cpu, "cores": cores, "memory_mib": memory, "system": platform.platform()}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's version and those of packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
