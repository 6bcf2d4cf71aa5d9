"""What the operating system says about a place to write, as the errors of the tree."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.errors import OutputError, StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system says when nothing more fits."""

UNUSABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EIO}
    | {errno.ENAMETOOLONG, errno.ESTALE, errno.ENOENT}
)
"""What it says when a folder is no place to write to."""


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turns what the operating system says about the cache's disk into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                "the disk is full",
                where=str(root),
                remedy="Free space (`fleetc cache gc`), or point FLEETC_CACHE to another disk.",
            ) from error
        if error.errno in UNUSABLE:
            raise StorageError(
                f"the cache cannot be used: {error.strerror}",
                where=str(error.filename or root),
                remedy="Point FLEETC_CACHE or --cache to a folder you may write to.",
            ) from error
        raise


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says about an output place into OutputError, a full disk into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                "the disk is full", where=str(path), remedy="Free space, or write to another disk."
            ) from error
        raise OutputError(
            f"cannot write here: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="Choose a folder you may write to.",
        ) from error
