"""ONNX's own checks in a child process: on damaged models its C++ code loops for ever or takes all memory.

Seen with onnx 1.23: an Einsum equation of zero bytes never returns.
"""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass

import onnx

from compiler.errors import StorageError
from compiler.model.forks import shared_server
from compiler.model.frontend.onnx_check import MODEL, UNWRITTEN, VERDICT
from compiler.model.process import fork_child, kill_child
from compiler.store.disk import output_errors
from compiler.store.scratch import scratch_folder

CHECK_S = 20.0
"""Seconds of processor time the checks may take, and one more for every NODES_PER_S nodes."""

BUSY = 10
"""On a busy machine they may take that many times as long by the clock."""

# far below what the checks do on any machine: only those that never end are to be stopped
NODES_PER_S = 1000


@dataclass(frozen=True)
class Verdict:
    """What ONNX's checks said.

    Args:
        failed: `checker`, `inference`, `stale` where only shapes stated inside the graph contradict, `stale-outputs`
            where the outputs' do, `crash`, or empty.
        said: The message of the check that failed.
    """

    failed: str
    said: str


def check_apart(proto: onnx.ModelProto, *, strict: bool, timeout_s: float = CHECK_S) -> Verdict:
    """Runs checker and inference on a model without weights, bounded in time and memory.

    Raises:
        StorageError: The disk of temporary files is full.
    """
    limit_s = round(timeout_s + len(proto.graph.node) / NODES_PER_S)
    endless = Verdict("crash", f"ONNX's own checker does not come to an end on this model within {limit_s} s")
    forks = shared_server("compiler.model.frontend.onnx_check:prepare", name="fleetc-check")
    with scratch_folder() as folder:
        with output_errors(folder):
            (folder / MODEL).write_bytes(proto.SerializeToString())
        mode = "strict" if strict else "lenient"
        child = fork_child(forks, "compiler.model.frontend.onnx_check:check", folder, str(limit_s), mode)
        try:
            code = child.wait(limit_s * BUSY)
        except subprocess.TimeoutExpired:
            return endless
        finally:
            kill_child(child)
        if code == -signal.SIGXCPU:
            return endless
        if code == UNWRITTEN:
            raise StorageError(
                "what ONNX's checks found cannot be written", where=str(folder), remedy="Free space, or set TMPDIR."
            )
        if code != 0:
            return Verdict("crash", f"ONNX's own checker crashes on this model (exit code {code})")
        answer = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
        return Verdict(answer["failed"], answer["said"])
