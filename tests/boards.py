"""TVM's own tracker and RPC servers on the loopback, as a lab has them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from compiler.errors import TargetUnavailable
from compiler.target import Backend

START_S = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_tracker() -> Iterator[str]:
    """A tracker; yields its address."""
    for module in ("tornado", "cloudpickle"):
        pytest.importorskip(module, reason=f"TVM's tracker needs {module}")
    port = free_port()
    process = _start("rpc_tracker", "--port", str(port), "--port-end", str(port + 1))
    try:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        stop(process)


def start_board(tracker: str, key: str) -> subprocess.Popen[bytes]:
    """TVM's own server, in Python, which the tracker knows under the key."""
    port = free_port()
    ports = ("--port", str(port), "--port-end", str(port + 9))
    return _registered(tracker, key, _start("rpc_server", *ports, "--tracker", tracker, "--key", key))


@contextmanager
def running_board(tracker: str, key: str, program: Sequence[str]) -> Iterator[None]:
    """A program that takes the key as its last argument and registers under it."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = _registered(tracker, key, subprocess.Popen([*program, key], start_new_session=True, **pipes))
    try:
        yield
    finally:
        stop(process)


def _registered(tracker: str, key: str, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    from targets.arm_tvm.tune.harness import find_board

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            find_board(Backend("rpc", tracker, key)).close()
            return process
        except TargetUnavailable:
            time.sleep(0.3)
    stop(process)
    pytest.fail("the board did not register")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends it and what it has started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the tracker did not start")
