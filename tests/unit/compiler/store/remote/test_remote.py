"""What one machine finished is used by another, if it is signed and whole; everything else is a miss."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.store import Stage, Store, file_digest
from compiler.store.envelope import Envelope, dump, load, sign
from compiler.store.keys import generate_key
from compiler.store.remote import Kind, RemoteStore
from compiler.store.remote.blobs import digest_bytes, read_bytes
from compiler.store.remote.entry import action_result, from_envelope, read_entry, record_of, to_envelope
from tests.unit.compiler.store.remote.conftest import STAGE, Cache

StoreOf = Callable[[RemoteStore | None], Store]

FILES = {"model.bin": b"weights" * 999, "deep/er/empty": b""}


def make(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def never(folder: Path) -> None:
    raise AssertionError("it is made again")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def filled(cache: Cache, store_of: StoreOf) -> Cache:
    """A cache that somebody has put the stage into."""
    store_of(cache.writer()).obtain(STAGE, make)
    return cache


def blob_of(name: str) -> str:
    return digest_bytes(FILES[name])


def test_what_one_machine_made_another_fetches(filled: Cache, store_of: StoreOf) -> None:
    reader = filled.reader()
    store = store_of(reader)
    entry = store.obtain(STAGE, never)
    assert entry.hit
    assert contents(entry.files) == FILES
    assert reader.counts.hits == 1 and reader.counts.fetched_bytes == sum(map(len, FILES.values()))
    again = store.obtain(STAGE, never)
    assert reader.counts.hits == 1, "the second time it is here"
    assert again.files == entry.files
    assert list((store.root / "tmp").iterdir()) == []


def test_a_fetched_entry_is_that_of_the_one_who_made_it(filled: Cache, store_of: StoreOf) -> None:
    store = store_of(filled.reader())
    store.obtain(STAGE, never)
    (folder,) = store.entries()
    record = json.loads((folder / "entry.json").read_text())
    assert record["stage"] == STAGE.name and [tuple(part) for part in record["parts"]] == list(STAGE.parts)
    assert store.durations()["compile"]


def test_what_the_cache_does_not_have_is_made_here(cache: Cache, store_of: StoreOf) -> None:
    assert not store_of(cache.reader()).obtain(STAGE, make).hit


def test_who_only_reads_writes_nothing(cache: Cache, store_of: StoreOf) -> None:
    store_of(cache.reader()).obtain(STAGE, make)
    assert not cache.behind.holds(Kind.AC, STAGE.digest)


BAD: dict[str, Callable[[Cache], None]] = {
    "a poisoned file": lambda cache: cache.replace(Kind.CAS, blob_of("model.bin"), b"poison!" * 999),
    "a longer file": lambda cache: cache.replace(Kind.CAS, blob_of("model.bin"), FILES["model.bin"] + b"?"),
    "a cut file": lambda cache: cache.replace(Kind.CAS, blob_of("model.bin"), FILES["model.bin"][:-1]),
    "an evicted file": lambda cache: cache.remove(Kind.CAS, blob_of("model.bin")),
    "an evicted record": lambda cache: cache.remove(Kind.CAS, record_digest(cache)),
    "another record": lambda cache: cache.replace(Kind.CAS, record_digest(cache), b"{}"),
    "no ActionResult": lambda cache: cache.replace(Kind.AC, STAGE.digest, b"\x08\x01"),
    "an empty ActionResult": lambda cache: cache.replace(Kind.AC, STAGE.digest, b"{}"),
    "a deep ActionResult": lambda cache: cache.replace(Kind.AC, STAGE.digest, b"[" * 99999),
}


def record_digest(cache: Cache) -> str:
    result = read_bytes(cache.behind, Kind.AC, STAGE.digest)
    assert result is not None
    return record_of(result).sha256


@pytest.mark.parametrize("damage", BAD)
def test_a_damaged_entry_is_a_miss_and_is_repaired(damage: str, filled: Cache, store_of: StoreOf) -> None:
    BAD[damage](filled)
    store = store_of(filled.writer())
    entry = store.obtain(STAGE, make)
    assert not entry.hit and contents(entry.files) == FILES
    assert list((store.root / "tmp").iterdir()) == []
    assert store_of(filled.reader()).obtain(STAGE, never).hit


def test_an_entry_that_no_trusted_key_signed_is_a_miss_and_said_once(
    filled: Cache, store_of: StoreOf, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(filled.reader(generate_key().public))
    assert not store.obtain(STAGE, make).hit
    store_of(filled.writer()).obtain(Stage("quantize", ()), make)
    assert not store.obtain(Stage("quantize", ()), make).hit
    (said,) = warnings(caplog)
    assert "no trusted key has signed" in said and filled.key.public.id[:16] in said


def put_record(cache: Cache, digest: str, record: bytes, folder: Path) -> None:
    """Makes a record visible under a digest."""
    cache.replace(Kind.CAS, digest_bytes(record), record)
    cache.replace(Kind.AC, digest, action_result(read_entry(folder, builder=""), record))


def test_an_entry_of_somebody_else_is_replaced_by_a_trusted_one(cache: Cache, store_of: StoreOf) -> None:
    store = store_of(None)
    store.obtain(STAGE, make)
    (folder,) = store.entries()
    put_record(cache, STAGE.digest, dump(sign(to_envelope(read_entry(folder, builder="")), generate_key())), folder)
    store_of(cache.writer()).obtain(STAGE, make)
    assert store_of(cache.reader()).obtain(STAGE, never).hit


def test_a_signed_entry_under_the_key_of_another_stage_is_not_used(
    filled: Cache, store_of: StoreOf, caplog: pytest.LogCaptureFixture
) -> None:
    other = Stage("compile", (("model", "b" * 64),))
    result = read_bytes(filled.behind, Kind.AC, STAGE.digest)
    assert result is not None
    filled.replace(Kind.AC, other.digest, result)
    assert not store_of(filled.reader()).obtain(other, make).hit
    assert "another stage under the key" in warnings(caplog)[0]


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "a//b", ".", "a\0b"])
def test_a_signed_entry_with_files_outside_is_not_used(name: str, cache: Cache, store_of: StoreOf) -> None:
    store = store_of(None)
    store.obtain(STAGE, make)
    (folder,) = store.entries()
    payload = json.loads(to_envelope(read_entry(folder, builder="")).payload)
    payload["files"][name] = payload["files"].pop("model.bin")
    envelope = sign(Envelope("application/vnd.fleetc.cache-entry+json", json.dumps(payload).encode()), cache.key)
    with pytest.raises(ValueError, match="a file outside the entry"):
        from_envelope(envelope)
    cache.replace(Kind.CAS, blob_of("model.bin"), FILES["model.bin"])
    cache.replace(Kind.CAS, blob_of("deep/er/empty"), b"")
    put_record(cache, STAGE.digest, dump(envelope), folder)
    assert not store_of(cache.reader()).obtain(STAGE, make).hit


def test_two_writers_at_once_leave_one_whole_entry(cache: Cache, store_of: StoreOf) -> None:
    start, count = threading.Barrier(4), 4
    errors: list[BaseException] = []

    def work(number: int) -> None:
        def make_own(folder: Path) -> None:
            make(folder)
            (folder / "noise").write_bytes(bytes([number]) * 1000)  # a result that is not reproducible
            start.wait(30)

        try:
            store_of(cache.writer()).obtain(STAGE, make_own)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    noise = {(store_of(cache.reader()).obtain(STAGE, never).files / "noise").read_bytes()[:1] for _ in range(2)}
    assert len(noise) == 1


def test_an_entry_that_came_meanwhile_stays(cache: Cache) -> None:
    from compiler.store.remote.blobs import write_bytes

    assert write_bytes(cache.behind, Kind.AC, STAGE.digest, b"first", replace=False)
    assert not write_bytes(cache.behind, Kind.AC, STAGE.digest, b"second", replace=False)
    assert read_bytes(cache.behind, Kind.AC, STAGE.digest) == b"first"
    assert write_bytes(cache.behind, Kind.AC, STAGE.digest, b"third", replace=True)
    assert read_bytes(cache.behind, Kind.AC, STAGE.digest) == b"third"


def test_more_than_the_limit_is_never_read(cache: Cache) -> None:
    cache.replace(Kind.CAS, digest_bytes(b"x" * 5000000), b"x" * 5000000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        read_bytes(cache.reader()._blobs, Kind.CAS, digest_bytes(b"x" * 5000000), limit=1000)


def test_a_server_says_who_made_an_entry(filled: Cache) -> None:
    record = read_bytes(filled.behind, Kind.CAS, record_digest(filled))
    assert record is not None
    envelope = load(record)
    assert envelope.signed_by(filled.key.public)
    assert from_envelope(envelope).builder == ("the test's server" if filled.server_signs else "writer")


def test_the_size_and_digest_of_files_are_under_the_signature(filled: Cache, store_of: StoreOf) -> None:
    entry = store_of(filled.reader()).obtain(STAGE, never)
    record = read_bytes(filled.behind, Kind.CAS, record_digest(filled))
    assert record is not None
    signed = from_envelope(load(record)).files["model.bin"]
    assert (signed.sha256, signed.bytes) == (file_digest(entry.files / "model.bin"), len(FILES["model.bin"]))
