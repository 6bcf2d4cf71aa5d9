"""Runs a target's work in a child process, so that a native crash, a hang or a memory blow-up stays with one device.

The parent writes `request.json` into a folder, has a process do the work of `compiler.target.worker`, watches time and
memory, and reads `response.json`. What the toolchain prints goes to `log.txt`; its end is part of the message when it
fails. The process is forked from one that has imported what all of them need; what is timed or weighed is done by a
process that shares nothing, `python -m compiler.target.worker FOLDER`.
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
from compiler.model.forks import ForkServer, shared_server
from compiler.model.process import (
    CONTROL,
    MIB,
    POLL_S,
    Child,
    ChildLimits,
    Family,
    Watch,
    death_of,
    fork_child,
    kill_child,
    log_tail,
    start_child,
)

__all__ = ["CONTROL", "MIB", "ChildLimits", "Family", "death_of", "kill_child", "log_tail", "run_child", "start_child"]


def fork_server(target: str = "") -> ForkServer:
    """Where processes of `compiler.target.worker` are forked from.

    Args:
        target: Name of a target that is `Prepares`: its toolchain is imported there. Empty: what all targets need is.
    """
    return shared_server("compiler.target.worker:prepare", *filter(None, [target]), name="fleetc-worker")


def run_child(
    work: str,
    request: dict[str, Any],
    *,
    folder: Path,
    child_limits: ChildLimits,
    where: str,
    forks: ForkServer | None = None,
) -> Any:
    """Does one piece of work of `compiler.target.worker` in a child process.

    Args:
        work: Name of the work: `build`, `execute`.
        request: JSON-ready arguments.
        folder: Scratch folder of this child; must exist.
        child_limits: When to kill it.
        where: Device and step, for messages.
        forks: Where its process is forked from; None if its time or its memory is a figure, it shares nothing then.

    Returns:
        The JSON value the work gave back.

    Raises:
        ToolchainFailed: The child crashed, hung, or used too much memory.
        CompilerError: Whatever the work raised, as the same class.
    """
    (folder / "request.json").write_text(json.dumps({"work": work, **request}), encoding="utf-8")
    child: Child
    if forks is None:
        child = start_child("compiler.target.worker", folder)
    else:
        child = fork_child(forks, "compiler.target.worker:work", folder)
    try:
        verdict = _watch(child, child_limits)
    finally:
        kill_child(child)
    return _response(folder, child.returncode or 0, verdict, where)


def _watch(child: Child, child_limits: ChildLimits) -> str:
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
