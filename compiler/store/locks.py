"""Locks between processes, which the system lets go of when their holder ends, however that happens.

A held lock file says who holds it, so that a process that waits can tell for whom. A lock file may be removed by
whoever holds its lock: others notice that the file they hold is no longer the one of that name, and try again.

A lease file names what its process was handed out of the store. Its lock is held for as long as the process needs it; a
lease whose lock can be had belongs to nobody, and is removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compiler.errors import StorageError

POLL_S = 0.05
FIRST_WORD_S = 3.0
"""How long a process waits in silence: most stages that two builds share take less."""

REPEAT_S = 60.0
"""How often it says again that it waits."""

log = logging.getLogger("fleetc.store")


@contextmanager
def exclusive(path: Path, *, purpose: str, limit_s: float | None = None) -> Iterator[None]:
    """Holds a lock file against other processes.

    Args:
        path: The lock file; its folder must be there.
        purpose: What it is held for; those who wait are told.
        limit_s: Longest time to wait, in seconds; None waits for ever.

    Raises:
        StorageError: Another process still holds it after that time.
    """
    handle = _wait_for(path, purpose, limit_s)
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose, "since": int(time.time())}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def flocked(path: Path, flags: int, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds the lock of a file or folder while the block runs; waits for it as long as it takes.

    Args:
        path: The file or folder.
        flags: Those of `open`.
        kind: Exclusive, or `LOCK_SH`.
    """
    handle = os.open(path, flags, 0o666)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def remove_if_free(path: Path) -> bool:
    """Removes a lock or lease file that nobody holds. Returns whether it did."""
    handle = try_lock(path, os.O_RDWR)
    if handle is None:
        return False
    with suppress(FileNotFoundError):
        path.unlink()
    os.close(handle)
    return True


class Leases:
    """What this process was handed out of a store, written down for those who clear the store.

    Args:
        folder: Where all processes keep their leases; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle: int | None = None
        self._opening = threading.Lock()
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        """Notes a name. Waits while another process clears the store.

        Raises:
            OSError: The folder cannot be written.
        """
        if name in self._names:
            return
        with self._gate(fcntl.LOCK_SH):
            os.write(self._open(), f"{name}\n".encode())
        self._names.add(name)

    @contextmanager
    def frozen(self) -> Iterator[frozenset[str]]:
        """Every name that a living process has noted, this one's too; nobody can note another one meanwhile."""
        with self._gate(fcntl.LOCK_EX):
            yield frozenset(name for path in self._folder.glob("*.lease") for name in _names_of(path))

    @contextmanager
    def _gate(self, kind: int) -> Iterator[None]:
        """The lock that is shared by those who note a name, and exclusive for those who read all of them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with flocked(self._folder / "gate", os.O_RDWR | os.O_CREAT, kind):
            yield

    def _open(self) -> int:
        with self._opening:
            return self._opened()

    def _opened(self) -> int:
        if self._handle is None:
            path = self._folder / f"{uuid.uuid4().hex}.lease"
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            weakref.finalize(self, _drop, path, self._handle, os.getpid())
        return self._handle


def _drop(path: Path, handle: int, owner: int) -> None:
    """Ends a lease in an orderly way; a forked copy of the process leaves it alone."""
    if os.getpid() == owner:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _names_of(lease: Path) -> list[str]:
    """The names of a lease whose process lives; one whose process is gone is removed."""
    if remove_if_free(lease):
        return []
    with suppress(FileNotFoundError):
        return lease.read_text(encoding="utf-8").split()
    return []


def _wait_for(path: Path, purpose: str, limit_s: float | None) -> int:
    began = time.monotonic()
    next_word = began + FIRST_WORD_S
    while True:
        handle = try_lock(path, os.O_RDWR | os.O_CREAT)
        if handle is not None:
            return handle
        now = time.monotonic()
        if limit_s is not None and now - began >= limit_s:
            raise StorageError(
                f"waited {limit_s:g} s for {_holder(path)}, which makes the same: {purpose}",
                where=str(path),
                remedy="Wait for that process, end it, or allow more with --cache-wait.",
            )
        if now >= next_word:
            # another device of this build is no news: its own stages are shown
            level = logging.DEBUG if _is_own(path) else logging.WARNING
            log.log(level, "waiting for %s, which makes the same: %s", _holder(path), purpose)
            next_word = now + REPEAT_S
        time.sleep(POLL_S)


def try_lock(path: Path, flags: int) -> int | None:
    """A handle that holds the lock of the file or folder of that name.

    Args:
        path: The file or folder.
        flags: Those of `open`.

    Returns:
        None where another process holds the lock, or there is no file.

    Raises:
        OSError: It cannot be opened or locked for another reason.
    """
    try:
        handle = os.open(path, flags, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # the file may have been removed between `open` and `flock`: then the lock keeps nobody out
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _is_own(path: Path) -> bool:
    """Whether a thread of this process holds a lock."""
    return _read_holder(path).get("pid") == os.getpid()


def _holder(path: Path) -> str:
    """Who holds a lock, as it wrote down itself."""
    holder = _read_holder(path)
    try:
        seconds = max(0, int(time.time()) - int(holder["since"]))
        return f"process {int(holder['pid'])} on {holder['host']} (for {seconds} s)"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _read_holder(path: Path) -> dict[str, Any]:
    """What the holder of a lock wrote into its file; nothing while it is just being written."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}
