"""What a remote cache is made of: bytes under digests, in a folder, behind HTTP, or as objects."""

from __future__ import annotations

import hashlib
import io
from enum import StrEnum
from typing import BinaryIO, Protocol

from compiler.errors import StorageError

CHUNK_BYTES = 1 << 20
"""Read and written at a time: large enough that calls do not count, small enough for any memory."""

MAX_RECORD_BYTES = 16 << 20
"""Largest ActionResult or record that is read: a stage of ten thousand files has less."""


class Kind(StrEnum):
    """The two halves of the protocol, as they stand in its paths."""

    CAS = "cas"
    AC = "ac"


class CacheUnreachable(StorageError):
    """A remote cache does not answer, or answers with what is none of its words."""


class WriteRefused(StorageError):
    """A remote cache may be read and not written."""


class Sink(Protocol):
    """Where bytes are written to: a file, or what looks at them on their way."""

    def write(self, data: bytes, /) -> object:
        """Takes bytes."""


class Blobs(Protocol):
    """Bytes under digests. Each method may raise CacheUnreachable; one object serves several threads.

    Attributes:
        place: What the cache is called in messages, without passwords.
    """

    @property
    def place(self) -> str:
        """What the cache is called in messages, without passwords."""

    def holds(self, kind: Kind, digest: str) -> bool:
        """Whether something is there; asking counts as use."""

    def read(self, kind: Kind, digest: str, into: Sink, *, limit: int) -> bool:
        """Copies what is there into a file, and no more than `limit` + 1 bytes of it. Returns False if nothing is."""

    def write(self, kind: Kind, digest: str, source: BinaryIO, size: int, *, replace: bool) -> bool:
        """Writes `size` bytes, whole or not at all.

        Returns:
            False if something was there already and `replace` is False.

        Raises:
            WriteRefused: The cache may not be written.
        """


def read_bytes(blobs: Blobs, kind: Kind, digest: str, *, limit: int = MAX_RECORD_BYTES) -> bytes | None:
    """What is there; None if nothing is.

    Raises:
        ValueError: It is larger than the limit.
    """
    buffer = io.BytesIO()
    if not blobs.read(kind, digest, buffer, limit=limit):
        return None
    if buffer.tell() > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return buffer.getvalue()


def write_bytes(blobs: Blobs, kind: Kind, digest: str, content: bytes, *, replace: bool) -> bool:
    """Writes bytes. Returns False if something was there already and `replace` is False."""
    return blobs.write(kind, digest, io.BytesIO(content), len(content), replace=replace)


def digest_bytes(content: bytes) -> str:
    """SHA-256 (64 hex digits)."""
    return hashlib.sha256(content).hexdigest()


class HashingWriter:
    """Passes bytes on to a file, and knows their digest and number; more than the limit are not passed on.

    Args:
        file: Where the bytes go; None: nowhere.
        limit: Most bytes that are passed on.
    """

    def __init__(self, file: BinaryIO | None, *, limit: int = 0) -> None:
        self._file, self._limit, self._digest = file, limit, hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> None:
        """Takes bytes."""
        self.size += len(data)
        self._digest.update(data)
        if self._file is not None and self.size <= self._limit:
            self._file.write(data)

    @property
    def hexdigest(self) -> str:
        """SHA-256 of all that was written."""
        return self._digest.hexdigest()
