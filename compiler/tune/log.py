"""The tuning log: one JSONL file per type of device, appended to and never rewritten.

<cache>/tuning/<model>-<digest>.jsonl    one record per line, flushed to the disk before the trial counts as done
<cache>/tuning/locks/…                   held while a line is written, and while a trial is measured

Whatever a line is, reading goes on behind it: a torn or changed line, another schema, no JSON at all is told once and
counts for nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from compiler.errors import DataError
from compiler.store import canonical_json
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors, storage_errors
from compiler.tune.record import DeviceType, TuningRecord, record_from_dict, record_to_dict

MAX_LINE_BYTES = 1 << 20
"""Size of the longest line that is read: a record has about two thousand bytes."""

log = logging.getLogger("fleetc.tune")


@dataclass(frozen=True)
class Lines:
    """What a file of records holds: the records, and the lines that are none, each with its reason."""

    records: tuple[TuningRecord, ...]
    problems: tuple[str, ...]


class TuningLog:
    """All records under one folder; safe for several processes at once.

    Args:
        folder: `<cache>/tuning`; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[tuple[int, int], Lines]] = {}

    def __repr__(self) -> str:
        return f"TuningLog({str(self.folder)!r})"

    def append(self, record: TuningRecord) -> None:
        """Writes one record behind the others; it is on the disk when this returns.

        Raises:
            StorageError: The folder cannot be written, or the disk is full.
        """
        self.extend([record])

    def extend(self, records: Iterable[TuningRecord]) -> None:
        """Writes records behind the others, each into the file of its device type. Raises as `append` does."""
        files: dict[Path, list[TuningRecord]] = {}
        for record in records:
            files.setdefault(self.path(record.key.device), []).append(record)
        with storage_errors(self.folder):
            for path, rows in files.items():
                with self.lock(path.stem):
                    _append(path, "".join(canonical_json(record_to_dict(row)) + "\n" for row in rows))

    def records(self) -> tuple[TuningRecord, ...]:
        """Every record of every device type that is whole; what is not is told once as a warning."""
        files = (self._read(path) for path in sorted(self.folder.glob("*.jsonl")))
        return tuple(record for lines in files for record in lines.records)

    def of(self, device: DeviceType) -> tuple[TuningRecord, ...]:
        """The records measured on one type of device; one of another device in its file is left out."""
        records = self._read(self.path(device)).records
        return tuple(record for record in records if record.key.device == device)

    def path(self, device: DeviceType) -> Path:
        """The file of one type of device."""
        # the slug is for people who look into the folder; the digest alone tells types of devices apart
        slug = re.sub(r"[^a-z0-9]+", "-", device.model.lower()).strip("-")[:48] or "device"
        return self.folder / f"{slug}-{device.digest[:12]}.jsonl"

    def lock(self, name: str) -> FileLock:
        """A lock between processes, let go of when its holder dies."""
        with storage_errors(self.folder):
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def export(self, path: Path) -> int:
        """Writes every whole record into one JSONL file. Returns their number.

        Raises:
            OutputError: The file cannot be written.
        """
        records = self.records()
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(canonical_json(record_to_dict(row)) + "\n" for row in records).encode())
        return len(records)

    def import_(self, path: Path) -> int:
        """Takes the records of an exported file that are not here yet. Returns their number.

        Raises:
            DataError: The file cannot be read, or a line of it is no record; nothing was taken.
        """
        try:
            lines = read_lines(path)
        except OSError as error:
            raise DataError(
                f"it cannot be read: {error.strerror}", where=str(path), remedy="Check the path."
            ) from error
        if lines.problems:
            raise DataError(
                f"not an exported tuning log: {'; '.join(lines.problems[:5])}",
                where=str(path),
                remedy="`fleetc tune --export` writes one; nothing of this file was taken.",
            )
        here = {_identity(record) for record in self.records()}
        # by identity: the same log may be imported twice, or from two machines that exchanged theirs
        fresh = {_identity(record): record for record in lines.records if _identity(record) not in here}
        self.extend(fresh.values())
        return len(fresh)

    def _read(self, path: Path) -> Lines:
        """The file's lines, read again only when it has changed."""
        try:
            state = path.stat()
            known = self._known.get(path)
            # the file only grows: its size alone tells of a line written within one tick of the clock
            if known and known[0] == (state.st_size, state.st_mtime_ns):
                return known[1]
            lines = read_lines(path)
        except FileNotFoundError:
            return Lines((), ())
        reported = set(known[1].problems) if known else set()
        for problem in lines.problems:
            if problem not in reported:
                log.warning("%s: %s; that line is not used", path, problem)
        self._known[path] = ((state.st_size, state.st_mtime_ns), lines)
        return lines


def read_lines(path: Path) -> Lines:
    """Reads a file of records, whatever is in it.

    Raises:
        OSError: It cannot be opened.
    """
    records: list[TuningRecord] = []
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            records.append(record_from_dict(json.loads(line)))
        except (ValueError, RecursionError) as error:
            torn = "it is torn: its writer was killed, or the disk was full" if not line.endswith(b"\n") else str(error)
            problems.append(f"line {number}: {torn[:200]}")
    return Lines(tuple(records), tuple(problems))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number in range(1, 1 << 31):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            if line.strip():
                yield number, line


def _append(path: Path, text: str) -> None:
    """Behind a torn line the new ones start on a line of their own."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _identity(record: TuningRecord) -> str:
    return canonical_json(record_to_dict(record))
