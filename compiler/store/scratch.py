"""Temporary folders that do not outlive their owner for long, even where it is killed.

A folder is named `fleetc-run-<process id>-<random>` and its owner holds a lock on it. The system lets go of a lock when
its holder ends, however that happens; so a folder whose lock can be had belongs to nobody. A process id alone does not
say that: it is given out again, and two containers with one /tmp have equal ones.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.store.locks import try_lock

PREFIX = "fleetc-run-"

log = logging.getLogger("fleetc.store")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty temporary folder, removed when the block ends; where the process is killed, by the next run."""
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned() -> int:
    """Removes this user's temporary folders whose owners are gone. Returns how many."""
    places = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _is_own_folder(path)]
    return sum(map(_remove_if_abandoned, places))


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
        # another run that starts just now took the lock first, and removes the folder as an abandoned one


def _lock(folder: Path) -> int | None:
    """An open handle that holds the folder's lock; None where another process has it, or the folder is gone."""
    try:
        return try_lock(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # no folder of ours: a link, or one that another user's process made
        return None


def _remove_if_abandoned(folder: Path) -> bool:
    lock = _lock(folder)
    if lock is None:
        return False
    log.debug("%s: its owner is gone; it is removed", folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return True


def _is_own_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:  # another process removed it meanwhile
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
