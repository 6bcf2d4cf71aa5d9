"""Runs the C compiler and linker of the `ziglang` wheel: no system compiler and no root are needed."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from compiler.target import TargetUnavailable, ToolchainFailed

TIMEOUT_S = 300
REMEDY = "pip install 'fleetc[tvm]'"


def run_zig(*arguments: str | Path, cache_dir: Path) -> None:
    """Runs one zig command.

    Args:
        arguments: Its command line.
        cache_dir: Where zig keeps what it compiles once; shared safely by several processes.

    Raises:
        TargetUnavailable: ziglang is not installed.
        ToolchainFailed: The command failed or hung.
    """
    # All of its environment: what zig makes must not depend on the variables of the caller.
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(cache_dir / "zig"), "ZIG_LOCAL_CACHE_DIR": str(cache_dir / "zig")}
    command = [str(argument) for argument in (_zig(), *arguments)]
    try:
        subprocess.run(command, env=caches, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ToolchainFailed(f"zig {arguments[0]} did not end within {TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        lines = "\n".join(error.stderr.strip().splitlines()[:12])
        raise ToolchainFailed(f"zig {arguments[0]} ended with {error.returncode}:\n{lines}") from error


def _zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise TargetUnavailable("ziglang, which links for the device, is not installed", remedy=REMEDY)
    return Path(spec.submodule_search_locations[0]) / "zig"
