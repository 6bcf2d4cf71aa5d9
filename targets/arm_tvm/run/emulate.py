"""Running aarch64 programs on a workstation of another architecture, with QEMU's user mode."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

from compiler.target import TargetUnavailable, ToolchainFailed, scratch_folder
from targets.arm_tvm.bundle.link import link_counter

# Cross-compiler packages have their own folder; packages of a second architecture share the system folders.
SYSROOTS = (Path("/usr/aarch64-linux-gnu"), Path("/"))
LIBRARIES = ("lib/ld-linux-aarch64.so.1", "lib/libc.so.6", "lib/libstdc++.so.6")
REMEDY = "sudo scripts/install-emulator"
FALLBACK_CPU = "max"
"""QEMU's name of a core with every instruction that it can execute."""


def host_arch() -> str:
    """The architecture of this machine, as triples spell it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def why_not_runnable(arch: str) -> str:
    """Why programs of an architecture cannot run on this machine; empty if they can."""
    if arch == host_arch():
        return ""
    if arch != "aarch64":
        return f"this is a {host_arch()} machine and only aarch64 programs are emulated"
    if _qemu() is None:
        return "qemu-aarch64 is not installed"
    if _sysroot() is None:
        return f"QEMU is there, but no arm64 C and C++ libraries under {SYSROOTS[0]}"
    return ""


def emulator(cpu: str, *, root: Path | None = None) -> tuple[str, ...]:
    """The start of a command line that runs an aarch64 program.

    Args:
        cpu: A name from `emulated_cpu`.
        root: Where the program's loader and libraries are; the installed arm64 libraries if not given.

    Raises:
        TargetUnavailable: QEMU or the arm64 libraries are not installed.
    """
    reason = why_not_runnable("aarch64")
    qemu, sysroot = _qemu(), _sysroot()
    if qemu is None or sysroot is None:
        raise TargetUnavailable(f"the bundle cannot be emulated: {reason}", remedy=REMEDY)
    return (qemu, "-L", str(root or sysroot), "-cpu", cpu)


def emulated_cpu(mcpu: str) -> str:
    """QEMU's model of a core, or `max` (everything QEMU knows) where it has none of that name."""
    qemu = _qemu()
    if qemu is None:
        return FALLBACK_CPU
    listed = subprocess.run([qemu, "-cpu", "help"], capture_output=True, text=True, timeout=30, check=False).stdout
    return mcpu if mcpu in listed.split() else FALLBACK_CPU


def count_instructions(
    program: tuple[str, ...], *, cpu: str, environment: dict[str, str], timeout_s: float, root: Path | None = None
) -> int:
    """Guest instructions that one run of an aarch64 program executes, start-up included.

    Args:
        program: Its command line.
        cpu, root: As `emulator` takes them.
        environment: All of its environment.
        timeout_s: After how long it is stopped.

    Raises:
        TargetUnavailable: No emulator.
        ToolchainFailed: The program failed or did not end, or QEMU has no plugins.
    """
    log = _counted(program, cpu=cpu, environment=environment, timeout_s=timeout_s, root=root)
    return _counts("instructions", log)[-1]


def count_timed(program: tuple[str, ...], *, cpu: str, environment: dict[str, str], timeout_s: float) -> int:
    """Guest instructions between the last two times that an aarch64 program reads the clock.

    `run --repeat 1` reads it right before and right after the one inference that it measures, and not again. Threads
    that wait for others read it, too: the program is to have one.

    Args:
        program, cpu, environment, timeout_s: As of `count_instructions`.

    Raises:
        TargetUnavailable, ToolchainFailed: As of `count_instructions`; or it reads the clock less than twice.
    """
    log = _counted(program, cpu=cpu, environment=environment, timeout_s=timeout_s, root=None)
    start, end = _counts("clock", log, least=2)[-2:]
    return end - start


def _counted(
    program: tuple[str, ...], *, cpu: str, environment: dict[str, str], timeout_s: float, root: Path | None
) -> str:
    """What the counter printed."""
    with scratch_folder() as place:
        plugin = place / "count.so"
        link_counter(plugin, arch=host_arch(), plugin_api=plugin_api(), workdir=place)
        command = (*emulator(cpu, root=root), "-plugin", str(plugin), "-d", "plugin", *program)
        ended = _run(command, environment, timeout_s)
    if ended.returncode:
        raise ToolchainFailed(f"QEMU could not count instructions: {ended.stderr.strip()[-500:]}")
    return ended.stderr


def _counts(what: str, log: str, *, least: int = 1) -> list[int]:
    counts = [int(count) for count in re.findall(rf"^{what} (\d+)$", log, re.MULTILINE)]
    if len(counts) < least:
        raise ToolchainFailed(f"QEMU could not count instructions: {log.strip()[-500:]}")
    return counts


def _run(command: tuple[str, ...], environment: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ToolchainFailed(f"the emulated program did not end within {timeout_s:g} s") from error


def _qemu() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def _sysroot() -> Path | None:
    return next((root for root in SYSROOTS if all((root / name).exists() for name in LIBRARIES)), None)


def plugin_api() -> int:
    """The version of the plugin interface that the installed QEMU takes."""
    version = subprocess.run(
        [str(_qemu()), "--version"], capture_output=True, text=True, timeout=30, check=False
    ).stdout
    release = re.search(r"version (\d+)\.(\d+)", version)
    return 1 if release and (int(release[1]), int(release[2])) < (8, 2) else 2
