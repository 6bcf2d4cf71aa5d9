"""Files by their SHA-256, as clients upload them: part by part, and resumed where an upload broke.

<data>/blobs/<project>/ab/<digest>       whole, its digest recomputed
<data>/blobs/<project>/parts/<digest>    what of it is there so far, from its first byte on
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from compiler.store.disk import storage_errors
from server.problems import Problem

WRITE_BYTES = 1 << 20
"""How much is collected before it is written: a thread is asked for each time."""

STALE_PART_S = 7 * 24 * 3600
"""A part this old belongs to nobody any more."""


@dataclass(frozen=True)
class Part:
    """The range of a file that one request brings.

    Args:
        first: Place of its first byte.
        end: Place after its last byte.
        total: Size of the whole file; None where the request does not say.
    """

    first: int
    end: int
    total: int


class Blobs:
    """The files of all projects.

    Args:
        folder: Where they are.
        most_bytes: Size of the largest one that is taken.
    """

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def path(self, project: str, digest: str) -> Path | None:
        """A whole file; None where it is not there."""
        path = self._path(project, digest)
        return path if path.is_file() else None

    def touch(self, project: str, digest: str) -> None:
        """Notes that a file is in use, so that it is not removed as an old one."""
        with contextlib.suppress(OSError):
            os.utime(self._path(project, digest))

    def received(self, project: str, digest: str) -> int:
        """How many bytes of a file are there."""
        whole = self.path(project, digest)
        part = self._part(project, digest)
        with contextlib.suppress(FileNotFoundError):
            return (whole or part).stat().st_size
        return 0

    async def receive(self, project: str, digest: str, part: Part, stream: AsyncIterator[bytes]) -> bool:
        """Takes a part of a file; what arrives before a connection breaks is kept.

        Returns:
            Whether the file is whole now.

        Raises:
            Problem: It is too large, leaves a gap, is being uploaded by another request, or has another digest.
            StorageError: The disk is full.
        """
        if part.total > self._most_bytes:
            raise Problem(413, f"the file is larger than {self._most_bytes} bytes, the most that is taken")
        path = self._part(project, digest)
        with storage_errors(path.parent), _exclusive(path) as file:
            there = os.fstat(file).st_size
            if part.first > there:
                raise Problem(416, f"bytes from {there} on are missing", remedy=f"Go on at byte {there}.")
            os.ftruncate(file, part.first)
            os.lseek(file, part.first, os.SEEK_SET)
            await _write_all(file, stream, part)
            if os.fstat(file).st_size < part.total:
                return False
            await run_in_threadpool(self._settle, path, project, digest)
        return True

    def _settle(self, path: Path, project: str, digest: str) -> None:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest:
            path.unlink()
            raise Problem(422, f"the bytes have the SHA-256 {actual}", remedy="Upload the file again.")
        final = self._path(project, digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        path.rename(final)

    def remove_old(self, *, age_s: float) -> int:
        """Removes files that nobody used for so long, and parts that nobody went on with. Returns the bytes freed."""
        now, freed = time.time(), 0
        for path in self._folder.glob("*/??/*"):
            freed += _remove_if_older(path, now - age_s)
        for path in self._folder.glob("*/parts/*"):
            freed += _remove_if_older(path, now - STALE_PART_S)
        return freed

    def free_bytes(self) -> int:
        """Free space on the disk."""
        return shutil.disk_usage(self._folder).free

    def _path(self, project: str, digest: str) -> Path:
        return self._folder / project / digest[:2] / digest

    def _part(self, project: str, digest: str) -> Path:
        return self._folder / project / "parts" / digest


def _remove_if_older(path: Path, moment: float) -> int:
    with contextlib.suppress(FileNotFoundError):
        state = path.stat()
        if state.st_mtime < moment:
            path.unlink()
            return state.st_size
    return 0


async def _write_all(file: int, stream: AsyncIterator[bytes], part: Part) -> None:
    waiting = bytearray()
    left = part.end - part.first
    try:
        async for piece in stream:
            left -= len(piece)
            if left < 0:
                raise Problem(400, "the body is longer than Content-Range says")
            waiting += piece
            if len(waiting) >= WRITE_BYTES:
                await run_in_threadpool(_write, file, bytes(waiting))
                waiting.clear()
    finally:
        _write(file, bytes(waiting))


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """An open part that no other request writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or os.fstat(file).st_ino != path.stat().st_ino:  # another request has just finished it
            raise Problem(409, "another request has just finished this file", remedy="Ask for it again.")
        yield file
    except BlockingIOError as error:
        raise Problem(409, "another request uploads this file now", remedy="Wait, and ask what is there.") from error
    finally:
        os.close(file)
