"""What a machine can build, as labels that it finds by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from compiler.fleet.detect import detect_gpu_profiles
from server.inputs import TIMING

QEMU = ("qemu-aarch64", "qemu-aarch64-static")


def find_labels() -> frozenset[str]:
    """Targets whose toolchain is installed, `qemu`, `gpu-sm89` for each kind of GPU, and `timing`."""
    found = {TIMING, *_targets()}
    if any(map(shutil.which, QEMU)):
        found.add("qemu")
    for profile in detect_gpu_profiles():
        capability = profile.accelerator.compute_capability if profile.accelerator else None
        if capability is not None:
            found.add(f"gpu-sm{str(capability).replace('.', '')}")
    return frozenset(found)


def _targets() -> set[str]:
    """Asked in a process of its own: a plugin may load what this one must not have."""
    command = [sys.executable, "-P", "-c", "from compiler.cli import main; main()", "targets", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    rows = json.loads(done.stdout) if done.returncode == 0 else []
    return {str(row["target"]) for row in rows if not row["problem"]}
