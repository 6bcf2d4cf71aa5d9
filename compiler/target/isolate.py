"""Runs a target's work in a child process, so that a native crash, a hang or a memory blow-up stays with one device.

The parent writes `request.json` into a folder, starts `python -m compiler.target.worker FOLDER`, watches time and
memory, and reads `response.json`. What the toolchain prints goes to `log.txt`; its end is part of the message when it
fails.
The child's standard input is a pipe that nobody writes to: when the parent is gone, however it ended, the pipe closes,
and the child's guardian kills the child and every tool it started.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from compiler.errors import InternalError, ToolchainFailed, from_dict
from compiler.model.process import (
    CONTROL,
    MIB,
    POLL_S,
    ChildLimits,
    Family,
    Watch,
    death_of,
    kill_child,
    log_tail,
    start_child,
)

__all__ = ["CONTROL", "MIB", "ChildLimits", "Family", "death_of", "kill_child", "log_tail", "run_child", "start_child"]


def run_child(work: str, request: dict[str, Any], *, folder: Path, child_limits: ChildLimits, where: str) -> Any:
    """Does one piece of work of `compiler.target.worker` in a child process.

    Args:
        work: Name of the work: `build`, `execute`.
        request: JSON-ready arguments.
        folder: Scratch folder of this child; must exist.
        child_limits: When to kill it.
        where: Device and step, for messages.

    Returns:
        The JSON value the work gave back.

    Raises:
        ToolchainFailed: The child crashed, hung, or used too much memory.
        CompilerError: Whatever the work raised, as the same class.
    """
    (folder / "request.json").write_text(json.dumps({"work": work, **request}), encoding="utf-8")
    child = start_child("compiler.target.worker", folder)
    try:
        verdict = _watch(child, child_limits)
    finally:
        kill_child(child)
    return _response(folder, child.returncode, verdict, where)


def _watch(child: subprocess.Popen[bytes], child_limits: ChildLimits) -> str:
    """Waits for the child; says which limit it broke, or nothing."""
    watch = Watch(child, child_limits)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_S)
            return ""
        if broken := watch.broken_limit():
            return broken


def _response(folder: Path, code: int, verdict: str, where: str) -> Any:
    path = folder / "response.json"
    if verdict:
        remedy = "Raise --build-timeout or --build-memory if that limit was too low for this model."
        raise ToolchainFailed(f"the toolchain {verdict}{log_tail(folder)}", where=where, remedy=remedy)
    if not path.exists():
        remedy = "Run it again; if it happens again, report it to the toolchain's makers with the border model."
        raise ToolchainFailed(f"the toolchain {death_of(code)}{log_tail(folder)}", where=where, remedy=remedy)
    response = json.loads(path.read_text(encoding="utf-8"))
    if "error" in response:
        error = from_dict(response["error"])
        if isinstance(error, InternalError):
            error.what += log_tail(folder)
        error.where = f"{where}: {error.where}" if error.where else where
        raise error
    return response["value"]
