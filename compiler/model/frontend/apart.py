"""ONNX's own checks in a child process: on damaged models its C++ code loops for ever or takes all memory.

Seen with onnx 1.23: an Einsum equation of zero bytes never returns.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx

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
    """Runs checker and inference on a model without weights, bounded in time and memory."""
    program = str(Path(__file__).with_name("onnx_check.py"))
    limit_s = round(timeout_s + len(proto.graph.node) / NODES_PER_S)
    endless = Verdict("crash", f"ONNX's own checker does not come to an end on this model within {limit_s} s")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", program, str(limit_s), *(["--strict"] if strict else [])],
            input=proto.SerializeToString(),
            capture_output=True,
            timeout=limit_s * BUSY,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return endless
    if done.returncode == -signal.SIGXCPU:
        return endless
    if done.returncode != 0:
        return Verdict("crash", f"ONNX's own checker crashes on this model (exit code {done.returncode})")
    answer = json.loads(done.stdout)
    return Verdict(answer["failed"], answer["said"])
