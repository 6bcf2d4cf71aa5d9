"""Processes that share a store: who waits for whom, and what may be cleared."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import compiler
from compiler.errors import StorageError
from compiler.store import Stage, Store, locks
from compiler.store.store import STALE_TMP_S

STAGE = Stage("build", (("model", "a" * 64),))

BUILDER = """
import sys, time
from pathlib import Path
from compiler.store import Stage, Store
store, seconds, mode = Store(Path(sys.argv[1])), float(sys.argv[2]), sys.argv[3]
def make(folder):
    if mode == "making":
        print("making", flush=True)
        time.sleep(seconds)
    (folder / "file").write_text("made")
entry = store.obtain(Stage("build", (("model", "a" * 64),)), make)
print("made", flush=True)
time.sleep(seconds)
assert (entry.files / "file").read_text() == "made"
"""


def fill(folder: Path) -> None:
    (folder / "file").write_text("made")


@contextmanager
def builder(root: Path, seconds: float, mode: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that is making the entry, or has been handed it and goes on working."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(root), str(seconds), mode],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(compiler.__file__).parents[1])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == ("making" if mode == "making" else "made")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_whoever_waits_says_for_whom_and_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        builder(tmp_path, locks.FIRST_WORD_S + 2, "making") as process,
        caplog.at_level(logging.WARNING, "fleetc.store"),
    ):
        entry = Store(tmp_path).obtain(STAGE, fill)
    assert entry.hit
    (line,) = caplog.messages  # once: the next word is a minute later
    wanted = rf"waiting for process {process.pid} on {re.escape(socket.gethostname())} \(for \d+ s\), .* stage build"
    assert re.fullmatch(wanted, line)


def test_waiting_has_a_limit_where_one_is_set(tmp_path: Path) -> None:
    with builder(tmp_path, 30, "making") as process:
        began = time.monotonic()
        with pytest.raises(StorageError, match=f"waited 0.3 s for process {process.pid} on .*stage build") as raised:
            Store(tmp_path, wait_s=0.3).obtain(STAGE, fill)
        assert time.monotonic() - began < 10
    assert "--cache-wait" in raised.value.remedy


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    with builder(tmp_path, 60, "making") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert not Store(tmp_path, wait_s=5).obtain(STAGE, fill).hit


def test_gc_leaves_what_a_running_process_was_handed_and_takes_it_once_that_is_killed(tmp_path: Path) -> None:
    with builder(tmp_path, 60, "handed") as process:
        assert Store(tmp_path).gc(max_bytes=0) == 0
        assert Store(tmp_path).info().entries == 1
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert list((tmp_path / "leases").glob("*.lease"))
        assert Store(tmp_path).gc(max_bytes=0) > 0
    assert Store(tmp_path).info().entries == 0
    assert not list((tmp_path / "leases").glob("*.lease"))


def test_gc_leaves_the_folder_of_an_entry_that_takes_longer_than_a_day_to_make(tmp_path: Path) -> None:
    with builder(tmp_path, 60, "making"):
        (scratch,) = (tmp_path / "tmp").iterdir()
        os.utime(scratch, (1, 1))
        Store(tmp_path).gc()
        assert scratch.exists()


def test_a_lease_ends_with_its_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.obtain(STAGE, fill)
    assert store.gc(max_bytes=0) == 0
    del store
    assert not list((tmp_path / "leases").glob("*.lease"))
    assert Store(tmp_path).gc(max_bytes=0) > 0


def test_gc_takes_old_locks_and_leaves_held_ones(tmp_path: Path) -> None:
    with builder(tmp_path, 60, "making"):
        (held,) = (tmp_path / "locks").iterdir()
        free = tmp_path / "locks" / f"{'b' * 64}.lock"
        young = tmp_path / "locks" / f"{'c' * 64}.lock"
        for path in (free, young):
            path.touch()
        old = time.time() - STALE_TMP_S - 60
        os.utime(held, (old, old))
        os.utime(free, (old, old))
        Store(tmp_path).gc()
        assert held.exists() and young.exists() and not free.exists()


def test_a_lock_file_removed_under_a_waiting_process_locks_nobody_out_and_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with locks.exclusive(path, purpose="first"):
        path.unlink()
        with (
            locks.exclusive(path, purpose="second", limit_s=5),  # the name is free: this is another lock
            pytest.raises(StorageError),
            locks.exclusive(path, purpose="third", limit_s=0.2),
        ):
            pass


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_serves_its_entries(tmp_path: Path) -> None:
    Store(tmp_path).obtain(STAGE, fill)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert Store(tmp_path).find(STAGE) is not None
    finally:
        for folder in folders:
            folder.chmod(0o755)
