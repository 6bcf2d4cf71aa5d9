"""The content-addressed store: one entry per finished stage, written once, atomically, verified whenever it is read.

<root>/entries/ab/<digest>/entry.json    the stage's named key parts, the digest of every file, and seconds of making it
<root>/entries/ab/<digest>/files/…       what the stage made
<root>/locks/<digest>.lock               held while one process makes the entry, whose name is in it; the others wait
<root>/timing/….lock                      what keeps other work from running beside a measurement
<root>/leases/….lease                    what a running process was handed out, which gc leaves alone
<root>/tmp/…                             entries being made; a killed build leaves its folder here, gc removes it
<root>/tmp/<digest>                      checkpoint of a resumable stage
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Protocol

from compiler.errors import DataError
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors, storage_errors
from compiler.store.gate import TimingGate
from compiler.store.locks import Leases, exclusive, remove_if_free

SCHEMA = 1
STALE_TMP_S = 24 * 3600
"""A temporary folder this old belongs to a build that was killed."""


log = logging.getLogger("fleetc.store")


@dataclass(frozen=True)
class Stage:
    """One step of a build, named by everything that can change its result.

    Args:
        name: What the step does: `import`, `rewrite`, `build`, …
        parts: Named key parts in a fixed order: full digests, options, tool versions.
    """

    name: str
    parts: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the name and the parts."""
        return hashlib.sha256(canonical_json([SCHEMA, self.name, self.parts]).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished stage in the store.

    Args:
        stage: Name of the stage.
        digest: Key of the entry.
        files: Folder with what the stage made.
        hit: Whether it was there before it was asked for.
        seconds: Wall time that making it took in this process; 0 for a hit.
    """

    stage: str
    digest: str
    files: Path
    hit: bool
    seconds: float = 0.0


class Remote(Protocol):
    """A store of others, which is asked for what is not here."""

    def fetch(self, stage: Stage, folder: Path) -> bool:
        """Fills an empty folder with `entry.json` and `files/`, all bytes checked; False if it has no such entry."""

    def push(self, folder: Path) -> None:
        """Offers it an entry of this store."""


@dataclass(frozen=True)
class StoreInfo:
    """Size of a store: entries and bytes by stage name."""

    root: Path
    entries: int
    bytes: int
    stages: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Relative POSIX path → SHA-256 of every file under a folder, symbolic links included, in path order."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): _known_digest(path) for path in files}


def _known_digest(path: Path) -> str:
    """The digest of a file, computed once in this process as long as the system says that nobody touched it."""
    at = path.stat()
    return _digest_of_state(path, (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns))


@lru_cache(maxsize=4096)
def _digest_of_state(path: Path, state: tuple[int, ...]) -> str:
    return file_digest(path)


class Store:
    """The store under one root folder; safe for several processes at once.

    Entries that were handed out are not removed by another process's `gc` for as long as this store is in use.

    Attributes:
        gate: Keeps other work from running beside what is timed.

    Args:
        root: The folder; made when first written to.
        wait_s: Longest time to wait for another process that makes the same entry, in seconds; None waits for ever.
        remote: Asked for what is not here, and offered what was made; None: nobody is.
    """

    def __init__(self, root: Path, *, wait_s: float | None = None, remote: Remote | None = None) -> None:
        self.root, self._wait_s, self._remote = root, wait_s, remote
        self._leases = Leases(root / "leases")
        self.gate = TimingGate(root / "timing")

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def obtain(self, stage: Stage, make: Callable[[Path], None]) -> Entry:
        """The finished stage: from the store if it is there and whole, or from the remote one, or made now.

        One process at a time makes it; the others wait.

        Args:
            stage: What is wanted.
            make: Fills an empty folder with the result. If it raises, nothing is kept.

        Raises:
            StorageError: The store cannot be written, or the disk is full; or another process makes the entry for
                longer than this one may wait.
        """
        with storage_errors(self.root):
            entry = self.find(stage)
            if entry:
                return entry
            self._leases.add(stage.digest)
            with self._lock(stage):
                found = self.find(stage) or self.fetch(stage)
                if found:
                    return found
                entry = self._make(stage, make)
            if self._remote is not None:  # without the lock: others need not wait for the network
                self._remote.push(self._folder(stage.digest))
            return entry

    def fetch(self, stage: Stage) -> Entry | None:
        """The entry from the remote store, which is here from now on; None if there is none.

        Raises:
            StorageError: The store cannot be written, or the disk is full.
        """
        if self._remote is None:
            return None
        with storage_errors(self.root), self._scratch() as scratch:
            draft = scratch / stage.digest
            draft.mkdir()
            if not self._remote.fetch(stage, draft):
                return None
            self._lease(stage.digest)
            self._remove_damaged(stage)
            self._adopt(draft, stage.digest)
        return Entry(stage.name, stage.digest, self._folder(stage.digest) / "files", hit=True)

    def find(self, stage: Stage) -> Entry | None:
        """The entry if it is there and every byte matches; None if it is missing or damaged."""
        folder = self._folder(stage.digest)
        if not folder.is_dir():
            return None
        self._lease(stage.digest)  # before it is looked at: afterwards nobody removes what was seen to be whole
        problem = _damage(folder, stage)
        if problem:
            log.debug("cache entry %s (%s) is damaged: %s", stage.digest[:12], stage.name, problem)
            return None
        _touch(folder / "entry.json")
        log.debug("cache entry %s (%s): found", stage.digest[:12], stage.name)
        return Entry(stage.name, stage.digest, folder / "files", hit=True)

    def workspace(self, stage: Stage) -> Path:
        """Where a stage that goes on after a kill keeps what it has; whoever made the stage removes the folder.

        `gc` removes one that nobody wrote to for a day.
        """
        return self.root / "tmp" / stage.digest

    def info(self) -> StoreInfo:
        """Entries and bytes, in all and by stage."""
        stages: dict[str, tuple[int, int]] = {}
        for folder in self._entries():
            name = _stage_name(folder)
            count, size = stages.get(name, (0, 0))
            stages[name] = (count + 1, size + _size(folder))
        counts = stages.values()
        return StoreInfo(self.root, sum(c for c, _ in counts), sum(s for _, s in counts), dict(sorted(stages.items())))

    def durations(self) -> dict[str, list[float]]:
        """Stage name → the seconds that making each of its entries took, other stages inside included."""
        seconds_by_stage: dict[str, list[float]] = {}
        for folder in self._entries():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or of an older version
                record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
                name, seconds = str(record["stage"]), float(record["seconds"])
                seconds_by_stage.setdefault(name, []).append(seconds)
        return seconds_by_stage

    def gc(self, *, max_bytes: int | None = None, max_age_s: float | None = None) -> int:
        """Removes what killed builds left, then entries too old, then the least recently used above `max_bytes`.

        What a running process was handed out, or is just making, stays, however old.

        Returns:
            Bytes freed.
        """
        with storage_errors(self.root):
            if not self.root.is_dir():
                return 0
            self._remove_old_locks()
            with self._scratch() as scratch, self._leases.frozen() as in_use:
                doomed = self._doomed(in_use, max_bytes, max_age_s)
                freed = sum(map(_size, doomed))
                # moved out of sight while nobody is handed anything; deleting takes longer, and waits until then
                for folder in doomed:
                    with contextlib.suppress(FileNotFoundError):  # another process may have removed it first
                        folder.rename(scratch / folder.name)
            return freed

    def _doomed(self, in_use: frozenset[str], max_bytes: int | None, max_age_s: float | None) -> list[Path]:
        """Folders that `gc` removes."""
        now, total = time.time(), 0
        doomed = [path for path in self._tmp() if path.name not in in_use and now - _modified(path) > STALE_TMP_S]
        for folder in sorted(self._entries(), key=_used, reverse=True):
            size = _size(folder)
            too_old = max_age_s is not None and now - _used(folder) > max_age_s
            too_much = max_bytes is not None and total + size > max_bytes
            if folder.name not in in_use and (too_old or too_much):
                doomed.append(folder)
            else:
                total += size
        return doomed

    def _remove_old_locks(self) -> None:
        for path in (self.root / "locks").glob("*.lock"):
            if time.time() - _modified(path) > STALE_TMP_S:
                remove_if_free(path)

    def _lease(self, name: str) -> None:
        try:
            self._leases.add(name)
        except OSError:  # a read-only shared cache still serves its entries; who may write there must not clear it
            log.debug("%s: what is in use cannot be noted", self.root)

    def entries(self) -> list[Path]:
        """Folders of every whole entry, as `Remote.push` takes them."""
        return [folder for folder in self._entries() if not _damage(folder, None)]

    def export(self, path: Path) -> int:
        """Writes every whole entry into one tar file. Returns the number of entries."""
        entries = self.entries()
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, partial(_pack, sorted(entries)))
        return len(entries)

    def import_(self, path: Path) -> int:
        """Takes the entries of an exported tar file that are whole and not here yet. Returns their number.

        Raises:
            DataError: The file is no such tar file, or holds an entry that does not match its digests.
        """
        with storage_errors(self.root), self._scratch() as scratch:
            _unpack(path, scratch)
            folders = sorted(folder for folder in scratch.iterdir())
            damaged = [f"{folder.name[:12]}: {_damage(folder, None)}" for folder in folders if _damage(folder, None)]
            if damaged:
                raise DataError(f"damaged entries: {'; '.join(damaged)}", where=str(path), remedy="Export it again.")
            fresh = [folder for folder in folders if not self._folder(folder.name).exists()]
            for folder in fresh:
                self._adopt(folder, folder.name)
            return len(fresh)

    def lend(self, stages: frozenset[str], other: Store) -> int:
        """Copies every whole entry of some stages into another store. Returns how many."""
        folders = [folder for folder in self._entries() if _stage_name(folder) in stages and not _damage(folder, None)]
        with storage_errors(other.root):
            for folder in folders:
                shutil.copytree(folder, other._folder(folder.name), dirs_exist_ok=True)
        return len(folders)

    def _make(self, stage: Stage, make: Callable[[Path], None]) -> Entry:
        """Makes the entry; the caller holds its lock, so nobody else removes or adds it meanwhile."""
        started = time.perf_counter()
        self._remove_damaged(stage)
        log.debug("cache entry %s (%s) is made: %s", stage.digest[:12], stage.name, canonical_json(stage.parts))
        with self._scratch() as scratch:
            self._leases.add(scratch.name)
            (scratch / "files").mkdir()
            make(scratch / "files")
            record = {
                "schema": SCHEMA,
                "stage": stage.name,
                "parts": stage.parts,
                "files": folder_digests(scratch / "files"),
                "seconds": round(time.perf_counter() - started, 3),
            }
            (scratch / "entry.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
            self._adopt(scratch, stage.digest)
        return Entry(
            stage.name,
            stage.digest,
            self._folder(stage.digest) / "files",
            hit=False,
            seconds=time.perf_counter() - started,
        )

    def _remove_damaged(self, stage: Stage) -> None:
        folder = self._folder(stage.digest)
        if folder.exists():
            problem = _damage(folder, stage)
            log.warning("cache entry %s (%s) is damaged: %s; it is made anew", stage.digest[:12], stage.name, problem)
            self._discard(folder)

    def _adopt(self, folder: Path, digest: str) -> None:
        final = self._folder(digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _discard(self, folder: Path) -> None:
        with storage_errors(self.root), self._scratch() as scratch, contextlib.suppress(FileNotFoundError):
            folder.rename(scratch / folder.name)  # another process may have removed it first

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.root / "tmp" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tmp(self) -> list[Path]:
        folder = self.root / "tmp"
        return list(folder.iterdir()) if folder.is_dir() else []

    @contextmanager
    def _lock(self, stage: Stage) -> Iterator[None]:
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        path = self.root / "locks" / f"{stage.digest}.lock"
        with exclusive(path, purpose=f"stage {stage.name}", limit_s=self._wait_s):
            yield

    def _folder(self, digest: str) -> Path:
        return self.root / "entries" / digest[:2] / digest

    def _entries(self) -> list[Path]:
        return sorted((self.root / "entries").glob("??/*"))


def _damage(folder: Path, stage: Stage | None) -> str:
    """What is wrong with an entry's folder; empty if it is whole."""
    try:
        record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        named = Stage(str(record["stage"]), tuple((str(name), str(value)) for name, value in record["parts"]))
        expected = dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"entry.json cannot be read ({type(error).__name__})"
    if named.digest != folder.name or (stage is not None and named != stage):
        return "its key is not the one asked for"
    try:
        actual = folder_digests(folder / "files")
    except OSError as error:
        return f"its files cannot be read ({error.strerror})"
    wrong = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
    return f"{', '.join(wrong)}: not the bytes that were stored" if wrong else ""


def _pack(folders: Sequence[Path], file: BinaryIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        for folder in folders:
            tar.add(folder, arcname=folder.name)


def _unpack(path: Path, folder: Path) -> None:
    """Unpacks a tar file; a compressed one is refused, since it may hold more than its size says."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(path), remedy="Check the path.") from error
    try:
        with file, tarfile.open(fileobj=file, mode="r:") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"not an exported cache: {error}", where=str(path), remedy="`fleetc cache export` writes one."
        ) from error


def _stage_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "entry.json").read_text(encoding="utf-8"))["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return "(damaged)"


def _used(folder: Path) -> float:
    return _modified(folder / "entry.json", missing=0.0)


def _modified(path: Path, *, missing: float = math.inf) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return missing


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # a read-only shared cache still serves its entries
        log.debug("%s: time of use not recorded", path)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
