"""A remote cache beside the store of this machine: what others finished is fetched, what is finished here is offered.

Whatever is wrong with the cache or an entry is a miss, and the stage is made here. A cache that cannot be reached is
said once, and then left alone by this process; so is the first entry that nobody trusted has signed.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import StorageError
from compiler.store.envelope import Envelope, dump, load, sign
from compiler.store.keys import PrivateKey, PublicKey
from compiler.store.remote.blobs import (
    Blobs,
    CacheUnreachable,
    HashingWriter,
    Kind,
    WriteRefused,
    digest_bytes,
    read_bytes,
    write_bytes,
)
from compiler.store.remote.entry import (
    EntryRecord,
    StoredFile,
    action_result,
    from_envelope,
    local_record,
    read_entry,
    record_of,
    to_envelope,
)
from compiler.store.store import Stage

log = logging.getLogger("fleetc.store")


@dataclass
class Counts:
    """What went over the network."""

    hits: int = 0
    misses: int = 0
    pushed: int = 0
    fetched_bytes: int = 0
    pushed_bytes: int = 0


class RemoteStore:
    """A remote cache, as the store of a build asks it.

    Attributes:
        counts: What went over the network so far.

    Args:
        blobs: The cache.
        trusted: Keys whose entries are used.
        pushes: Whether what is finished here is offered to it.
        key: Signs what is pushed; None where the cache's server signs.
        builder: Who makes the entries, for their records.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        trusted: Sequence[PublicKey],
        pushes: bool = False,
        key: PrivateKey | None = None,
        builder: str = "",
    ) -> None:
        self._blobs, self._trusted, self._pushes = blobs, tuple(trusted), pushes
        self._key, self._builder = key, builder
        self._lock = threading.Lock()
        self._is_dead = False
        self._has_warned_of_trust = False
        self._broken: set[str] = set()
        self.counts = Counts()

    def __repr__(self) -> str:
        return f"RemoteStore({self._blobs.place!r})"

    def fetch(self, stage: Stage, folder: Path) -> bool:
        """Fills an empty folder with a finished stage. Returns False where the stage must be made here.

        Raises:
            OSError: The folder cannot be written.
        """
        if self._is_dead:
            return False
        try:
            entry = self._fetch(stage, folder)
        except CacheUnreachable as error:
            self._give_up(error)
            entry = None
        with self._lock:
            self.counts.hits += entry is not None
            self.counts.misses += entry is None
        return entry is not None

    def push(self, folder: Path) -> None:
        """Offers a finished entry of this store; a cache that may not be written is said once."""
        if not self._pushes or self._is_dead:
            return
        try:
            self.upload(folder)
        except WriteRefused as error:
            self._pushes = False
            log.warning("%s; what is finished here is not shared", error)
        except CacheUnreachable as error:
            self._give_up(error)
        except ValueError as error:  # another process may have removed it meanwhile
            log.debug("cache entry %s is not shared: %s", folder.name[:12], error)

    def upload(self, folder: Path) -> bool:
        """Writes an entry into the cache: its files first, then its record, and at last what makes it visible.

        Returns:
            Whether it was not there before.

        Raises:
            ValueError: The entry is damaged.
            CacheUnreachable: The cache does not answer.
            WriteRefused: It may not be written.
        """
        entry = read_entry(folder, builder=self._builder)
        digest = entry.stage.digest
        if digest not in self._broken and self._trusted_entry(entry.stage) is not None:
            return False
        for name, file in entry.files.items():
            self._write_file(folder / "files" / name, file, force=digest in self._broken)
        envelope = to_envelope(entry)
        record = dump(sign(envelope, self._key) if self._key else envelope)
        write_bytes(self._blobs, Kind.CAS, digest_bytes(record), record, replace=True)  # what is there may be damaged
        # what is there is of nobody we trust, or was no good: only an entry that came meanwhile stays
        is_there = self._blobs.holds(Kind.AC, digest)
        write_bytes(self._blobs, Kind.AC, digest, action_result(entry, record), replace=is_there)
        with self._lock:
            self.counts.pushed += 1
        log.debug("cache entry %s (%s): shared", digest[:12], entry.stage.name)
        return True

    def _fetch(self, stage: Stage, folder: Path) -> EntryRecord | None:
        entry = self._trusted_entry(stage)
        if entry is None:
            return None
        for name, file in entry.files.items():
            problem = self._read_file(folder / "files" / name, file)
            if problem:
                self._broken.add(stage.digest)
                log.debug("cache entry %s (%s): %s %s; a miss", stage.digest[:12], stage.name, name, problem)
                return None
        (folder / "files").mkdir(exist_ok=True)
        (folder / "entry.json").write_text(json.dumps(local_record(entry), indent=1), encoding="utf-8")
        log.debug("cache entry %s (%s): fetched from %s", stage.digest[:12], stage.name, self._blobs.place)
        return entry

    def _trusted_entry(self, stage: Stage) -> EntryRecord | None:
        """The record of a stage; None where there is none, none that can be read, or none that is trusted."""
        try:
            result = read_bytes(self._blobs, Kind.AC, stage.digest)
            if result is None:
                return None
            place = record_of(result)
            record = read_bytes(self._blobs, Kind.CAS, place.sha256)
            if record is None or digest_bytes(record) != place.sha256:
                self._broken.add(stage.digest)
                return None
            envelope = load(record)
            if envelope.signer(self._trusted) is None:
                self._warn_of_trust(stage, envelope)
                return None
            entry = from_envelope(envelope)
        except ValueError as error:
            self._broken.add(stage.digest)
            log.debug("cache entry %s (%s): %s; a miss", stage.digest[:12], stage.name, error)
            return None
        if entry.stage != stage:
            self._broken.add(stage.digest)
            log.warning("%s has another stage under the key of %s; it is not used", self._blobs.place, stage.name)
            return None
        return entry

    def _read_file(self, path: Path, file: StoredFile) -> str:
        """Fetches one file. Returns what is wrong with it; empty if nothing is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            writer = HashingWriter(target, limit=file.bytes)
            is_there = self._blobs.read(Kind.CAS, file.sha256, writer, limit=file.bytes)
        if not is_there:
            return "is not there any more"
        if (writer.size, writer.hexdigest) != (file.bytes, file.sha256):
            return "is not what was signed"
        with self._lock:
            self.counts.fetched_bytes += file.bytes
        return ""

    def _write_file(self, path: Path, file: StoredFile, *, force: bool) -> None:
        if not force and self._blobs.holds(Kind.CAS, file.sha256):
            return
        with path.open("rb") as source:
            self._blobs.write(Kind.CAS, file.sha256, source, file.bytes, replace=force)
        with self._lock:
            self.counts.pushed_bytes += file.bytes

    def _give_up(self, error: StorageError) -> None:
        with self._lock:
            was_dead, self._is_dead = self._is_dead, True
        if not was_dead:
            log.warning("%s; the build goes on with the cache of this machine alone", error)

    def _warn_of_trust(self, stage: Stage, envelope: Envelope) -> None:
        with self._lock:
            was_said, self._has_warned_of_trust = self._has_warned_of_trust, True
        if not was_said:
            signers = ", ".join(signature.key_id[:16] for signature in envelope.signatures) or "nobody"
            log.warning(
                "%s has entries that no trusted key has signed (stage %s: signed by %s); they are not used",
                self._blobs.place,
                stage.name,
                signers,
            )
