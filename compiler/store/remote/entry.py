"""An entry of the store as a remote cache has it: a signed record, and an ActionResult that lists record and files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.store.envelope import Envelope
from compiler.store.remote.blobs import digest_bytes
from compiler.store.store import SCHEMA, Stage, canonical_json, folder_digests

PAYLOAD_TYPE = "application/vnd.fleetc.cache-entry+json"
RECORD = "entry.dsse.json"
"""Path of the record in an ActionResult; the files are below `files/`."""

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """One file of an entry."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class EntryRecord:
    """What a signature of an entry is over.

    Args:
        stage: The stage and its key parts.
        files: Relative path → the file.
        seconds: Wall time that making it took.
        builder: Who made it.
    """

    stage: Stage
    files: Mapping[str, StoredFile]
    seconds: float
    builder: str


def read_entry(folder: Path, *, builder: str) -> EntryRecord:
    """The record of an entry's folder, its digests computed from the files.

    Raises:
        ValueError: `entry.json` is none, or names other bytes.
    """
    record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    stage = _stage(record)
    digests = folder_digests(folder / "files")
    if stage.digest != folder.name or digests != record["files"]:
        raise ValueError("the entry is damaged")
    sizes = {name: (folder / "files" / name).stat().st_size for name in digests}
    files = {name: StoredFile(digest, sizes[name]) for name, digest in digests.items()}
    return EntryRecord(stage, files, float(record["seconds"]), builder)


def local_record(entry: EntryRecord) -> dict[str, Any]:
    """`entry.json` of an entry that was fetched."""
    return {
        "schema": SCHEMA,
        "stage": entry.stage.name,
        "parts": entry.stage.parts,
        "files": {name: file.sha256 for name, file in entry.files.items()},
        "seconds": entry.seconds,
    }


def to_envelope(entry: EntryRecord) -> Envelope:
    """The record, unsigned."""
    value = {
        **local_record(entry),
        "files": {name: [file.sha256, file.bytes] for name, file in entry.files.items()},
        "builder": entry.builder,
    }
    return Envelope(PAYLOAD_TYPE, canonical_json(value).encode())


def from_envelope(envelope: Envelope) -> EntryRecord:
    """The record in an envelope.

    Raises:
        ValueError: There is none, or it names files outside the entry.
    """
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ValueError(f"no record of an entry: {envelope.payload_type!r}")
    try:
        record = json.loads(envelope.payload)
        if record["schema"] != SCHEMA:
            raise ValueError(f"a record of schema {record['schema']!r}")
        files = {_path(name): _file(digest, size) for name, (digest, size) in record["files"].items()}
        return EntryRecord(_stage(record), files, float(record["seconds"]), str(record["builder"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no record of an entry: {type(error).__name__}: {error}") from error


def action_result(entry: EntryRecord, record: bytes) -> bytes:
    """The ActionResult that makes an entry visible, as JSON.

    Args:
        entry: The entry.
        record: Its envelope, as it lies in the cache.
    """
    files = {RECORD: StoredFile(digest_bytes(record), len(record))}
    files |= {f"files/{name}": file for name, file in entry.files.items()}
    outputs = [
        # protobuf's JSON has 64-bit integers as text
        {"path": path, "digest": {"hash": file.sha256, "sizeBytes": str(file.bytes)}}
        for path, file in sorted(files.items())
    ]
    return canonical_json({"outputFiles": outputs}).encode()


def record_of(raw: bytes) -> StoredFile:
    """Where the record of an ActionResult is.

    Raises:
        ValueError: It is no ActionResult of ours.
    """
    try:
        outputs = json.loads(raw)["outputFiles"]
        digest = next(item["digest"] for item in outputs if item["path"] == RECORD)
        return _file(digest["hash"], int(digest.get("sizeBytes", 0)))
    except (KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"no ActionResult of an entry: {type(error).__name__}") from error


def _stage(record: Any) -> Stage:
    return Stage(str(record["stage"]), tuple((str(name), str(value)) for name, value in record["parts"]))


def _path(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or path.as_posix() != name or name == ".":
        raise ValueError(f"a file outside the entry: {name!r}")
    return name


def _file(digest: object, size: object) -> StoredFile:
    if not isinstance(digest, str) or not SHA256.fullmatch(digest) or not isinstance(size, int) or size < 0:
        raise ValueError("a digest or a size that is none")
    return StoredFile(digest, size)
