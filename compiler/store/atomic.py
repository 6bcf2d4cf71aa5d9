"""Files and folders that are written whole or not at all, whatever ends the process or the machine.

A file    is written as a draft beside its place, forced to the disk, and renamed.
A folder  is exchanged with the one in its place by one system call (Linux, renameat2 with RENAME_EXCHANGE). Where the
          file system lacks that, the old folder is moved aside first; whoever comes next puts it back if the new one
          never arrived. Callers hold a lock over a folder's parent, so that nobody comes in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from compiler.store.locks import flocked

AT_FDCWD = -100
"""Of fcntl.h: paths are as for any other call."""

RENAME_EXCHANGE = 2
"""Of linux/fs.h: both names must be there, and each gets what the other had."""

_MORE = 1 << 20
"""Bytes that a disk has no room for where it had none for the rest of an array."""

_HEX = "[0-9a-f]" * 32


def write_atomic(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file that has its name only once it is complete and on the disk.

    Args:
        path: The place; what is there stays until the new content replaces it.
        content: Bytes, or a function that writes into an open file, which can seek.

    Raises:
        OSError: The place cannot be written, or the disk is full; nothing of the new content is left.
    """
    place = path.resolve() if path.is_symlink() else path  # the link stays, as it does for any other program
    if place.exists() and not (place.is_file() or place.is_dir()):
        with place.open("wb") as file:  # a device or a pipe, such as /dev/stdout, must not be replaced by a file
            _fill(file, content)
        return
    # the name is random: two containers on one volume may have equal process ids
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            _fill(file, content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
        sync_folder(place.parent)
    finally:
        draft.unlink(missing_ok=True)


_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK})
"""What the system says where a file cannot have two names: some network file systems."""


def adopt_file(draft: Path, place: Path, *, replace: bool) -> bool:
    """Gives a complete draft on the same file system its place in one step, once it is on the disk.

    Args:
        draft: The file; it may keep its name beside the new one.
        place: The place, whose folder is there.
        replace: Whether what is there already goes.

    Returns:
        False where something is there and stays.

    Raises:
        OSError: The place cannot be written.
    """
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    if replace:
        draft.replace(place)
    else:
        try:
            os.link(draft, place)  # a rename would replace what another process has just written
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if place.exists():
                return False
            draft.replace(place)
    sync_folder(place.parent)
    return True


def replace_by_link(path: Path, equal: Path) -> None:
    """Gives a file with the same bytes a second name in the place of another; leaves both where the disk cannot."""
    link = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # a file system without hard links: two files, then
        os.link(equal, link)
        link.replace(path)


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    try:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
    except OSError as error:
        if error.errno is None:  # numpy tells how much was written, and not why no more
            _write_more(file)
        raise


def _write_more(file: BinaryIO) -> None:
    """Has the system say why it writes no more."""
    file.seek(0, os.SEEK_END)
    file.write(bytes(_MORE))
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Forces a folder's list of names to the disk: without it a renamed file may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems cannot do that for a folder, and have nothing to force either
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of the one that is there once the block ends without an exception.

    Other processes that replace or restore a folder beside it wait meanwhile.

    Args:
        place: Where the folder shall be; its parent is made.

    Raises:
        OSError: The place cannot be written, or the disk is full; what was there is there still.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with flocked(place.parent, os.O_RDONLY | os.O_DIRECTORY):
        _restore(place)
        _remove_leftovers(place)
        draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            yield draft
            _sync_tree(draft)
            _put_in_place(draft, place)
            sync_folder(place.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def restore_folder(place: Path) -> None:
    """Puts back a folder that a killed process had moved aside and not replaced; does nothing where there is none.

    Raises:
        OSError: There is one, and it cannot be put back.
    """
    if _moved_aside(place) and not place.exists():
        with flocked(place.parent, os.O_RDONLY | os.O_DIRECTORY):
            _restore(place)


def _restore(place: Path) -> None:
    aside = _moved_aside(place)
    if aside and not place.exists():
        aside[-1].rename(place)


def _remove_leftovers(place: Path) -> None:
    """Removes drafts of killed processes, and old folders that were replaced; holds the lock."""
    for leftover in place.parent.glob(f".{glob.escape(place.name)}.{_HEX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _moved_aside(place: Path) -> list[Path]:
    """Old folders of this place, the last one moved last."""
    folders = place.parent.glob(f".{glob.escape(place.name)}.{_HEX}.old")
    return sorted(folders, key=lambda folder: folder.stat().st_ctime_ns)


def _put_in_place(draft: Path, place: Path) -> None:
    """Afterwards the new folder is in place, and the old one, if there was one, is removed."""
    if not place.exists():
        draft.rename(place)
        return
    if _exchange(draft, place):  # the draft's name is the old folder's now
        return
    aside = draft.with_name(f"{draft.name}.old")
    place.rename(aside)
    # a process killed between these two lines leaves no folder in place: `_restore` is for that
    draft.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no Linux, or a C library older than glibc 2.28
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync_tree(folder: Path) -> None:
    """Forces a folder's files to the disk: once they are in place the old ones are gone."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        elif not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
