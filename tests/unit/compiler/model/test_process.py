from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil

from compiler.model.process import Family, descendants

TREE = "sleep 60 & (sleep 60 & sleep 60; wait) & (bash -c 'sleep 60; true') & wait"


def test_family_is_every_process_below_one_as_the_whole_system_shows_it() -> None:
    with subprocess.Popen(["bash", "-c", TREE], start_new_session=True) as root:
        try:
            whole = set[psutil.Process]()
            deadline = time.monotonic() + 20
            while len(whole) < 5 and time.monotonic() < deadline:
                whole = set(psutil.Process(root.pid).children(recursive=True))
            assert set(descendants(root.pid)) == whole
            alone = psutil.Process(root.pid).memory_info().rss
            assert Family(root.pid).resident_bytes() > alone
        finally:
            os.killpg(root.pid, signal.SIGKILL)
