from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil

from compiler.model.process import Family, descendants

TREE = "sleep 60 & (sleep 60 & sleep 60; wait) & (bash -c 'sleep 60; true') & wait"


def test_family_is_every_process_below_one_as_the_whole_system_shows_it() -> None:
    with subprocess.Popen(["bash", "-c", TREE], start_new_session=True) as root:
        try:
            whole = _grown(root.pid)
            assert set(descendants(root.pid)) == whole
            alone = psutil.Process(root.pid).memory_info().rss
            assert Family(root.pid).resident_bytes() > alone
        finally:
            os.killpg(root.pid, signal.SIGKILL)


CHURN = """
import os
while True:
    for _ in range(6):
        if os.fork() == 0:
            os.fork()
            os._exit(0)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
"""
"""Children that have children and end at once."""


def test_processes_that_end_while_they_are_looked_at_are_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", CHURN], start_new_session=True) as root:
        try:
            ends = time.monotonic() + 1.0
            seen = 0
            while time.monotonic() < ends:
                seen += len(descendants(root.pid))
            assert seen
        finally:
            os.killpg(root.pid, signal.SIGKILL)


def _grown(pid: int) -> set[psutil.Process]:
    """The processes below the tree's root, once its last one, the fourth `sleep`, is there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):  # a shell that becomes its command meanwhile
            whole = set(psutil.Process(pid).children(recursive=True))
            if [process.name() for process in whole].count("sleep") == 4:
                return whole
    raise AssertionError("the tree of processes was not there within 20 s")
