"""A remote cache in a folder: what the server keeps, or a share that several machines see."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from compiler.store.atomic import adopt_file
from compiler.store.remote.blobs import CHUNK_BYTES, CacheUnreachable, Kind, Sink, WriteRefused

READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""What the system says of a place that may not be written."""


class FolderBlobs:
    """Bytes under digests, a file each; safe for several processes at once.

    Args:
        root: The folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        """The folder."""
        return f"file://{self.root}"

    def path(self, kind: Kind, digest: str) -> Path:
        """Where something is, or would be."""
        return self.root / kind / digest[:2] / digest

    def holds(self, kind: Kind, digest: str) -> bool:
        """Whether something is there; asking counts as use."""
        path = self.path(kind, digest)
        with self._reading():
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            except PermissionError:  # a share that may be read alone
                return path.is_file()
            return True

    def read(self, kind: Kind, digest: str, into: Sink, *, limit: int) -> bool:
        """Copies what is there into a file, and no more than `limit` + 1 bytes of it. Returns False if nothing is."""
        with self._reading():
            try:
                source = self.path(kind, digest).open("rb")
            except FileNotFoundError:
                if not self.root.is_dir():  # a share that is not mounted is no empty cache
                    raise
                return False
        with source:
            left = limit + 1
            while left > 0 and (chunk := source.read(min(CHUNK_BYTES, left))):
                into.write(chunk)
                left -= len(chunk)
        return True

    def write(self, kind: Kind, digest: str, source: BinaryIO, size: int, *, replace: bool) -> bool:
        """Writes bytes, whole or not at all. Returns False if something was there already and `replace` is False."""
        with self._writing(), self.draft() as draft:
            with draft.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
            return self.adopt(draft, kind, digest, replace=replace)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A place for a file that is being written, on the same file system."""
        path = self.root / "tmp" / uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, draft: Path, kind: Kind, digest: str, *, replace: bool) -> bool:
        """Gives a draft its place in one step. Returns False if something was there and `replace` is False."""
        place = self.path(kind, digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        return adopt_file(draft, place, replace=replace)

    def remove_oldest(self, *, max_bytes: int) -> int:
        """Removes what was not used for longest, down to so many bytes. Returns bytes freed.

        An entry whose file is gone is a miss to its readers, and is written again.
        """
        blobs = [(path, path.stat()) for kind in Kind for path in (self.root / kind).glob("??/*")]
        total, freed = sum(state.st_size for _, state in blobs), 0
        for path, state in sorted(blobs, key=lambda blob: blob[1].st_mtime):
            if total - freed <= max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            freed += state.st_size
        return freed

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unreachable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in READ_ONLY:
                reason = f"the shared cache may not be written: {error.strerror}"
                raise WriteRefused(reason, where=self.place) from error
            raise self._unreachable(error) from error

    def _unreachable(self, error: OSError) -> CacheUnreachable:
        return CacheUnreachable(f"the shared cache cannot be used: {error.strerror or error}", where=self.place)
