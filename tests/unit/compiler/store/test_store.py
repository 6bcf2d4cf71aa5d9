from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.errors import CompilerError, DataError, OutputError, StorageError
from compiler.store.disk import output_errors, storage_errors
from compiler.store.store import STALE_TMP_S, Stage, Store

STAGE = Stage("build", (("border", "abc"), ("tool", "1.0")))
OTHER = Stage("build", (("border", "abc"), ("tool", "1.1")))


def fill(folder: Path) -> None:
    (folder / "payload").mkdir()
    (folder / "payload" / "a.bin").write_bytes(b"a" * 100)
    (folder / "b.txt").write_text("b")


def never(folder: Path) -> None:
    raise AssertionError("made again")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_entry_is_made_once_and_then_found(store: Store) -> None:
    made = store.obtain(STAGE, fill)
    found = store.obtain(STAGE, never)
    assert (made.hit, found.hit) == (False, True)
    assert (found.files / "payload" / "a.bin").read_bytes() == b"a" * 100
    assert list((store.root / "tmp").iterdir()) == []


def test_any_part_of_the_key_makes_another_entry(store: Store) -> None:
    store.obtain(STAGE, fill)
    assert not store.obtain(OTHER, fill).hit
    assert not store.obtain(Stage("verify", STAGE.parts), fill).hit
    assert not store.obtain(Stage("build", STAGE.parts[::-1]), fill).hit


def test_failure_is_raised_and_nothing_is_kept(store: Store) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise DataError("no")

    with pytest.raises(DataError):
        store.obtain(STAGE, fails)
    assert store.find(STAGE) is None
    assert list((store.root / "tmp").iterdir()) == []
    assert not store.obtain(STAGE, fill).hit


def _flip(entry: Path) -> None:
    path = entry / "files" / "payload" / "a.bin"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def _same_size_same_time(entry: Path) -> None:
    path = entry / "files" / "payload" / "a.bin"
    before = path.stat()
    _flip(entry)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _rename_key(entry: Path) -> None:
    record = json.loads((entry / "entry.json").read_text())
    record["parts"][1][1] = "9.9"
    (entry / "entry.json").write_text(json.dumps(record))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": _flip,
    "flipped bit, times kept": _same_size_same_time,
    "truncated file": lambda entry: (entry / "files" / "b.txt").write_text(""),
    "missing file": lambda entry: (entry / "files" / "b.txt").unlink(),
    "extra file": lambda entry: (entry / "files" / "c.txt").write_text("c"),
    "link in place of a file": lambda entry: [
        (entry / "files" / "b.txt").unlink(),
        (entry / "files" / "b.txt").symlink_to("nowhere"),
    ],
    "link to a folder": lambda entry: (entry / "files" / "c").symlink_to("/"),
    "truncated entry.json": lambda entry: (entry / "entry.json").write_text('{"schema": 1, "sta'),
    "empty entry.json": lambda entry: (entry / "entry.json").write_bytes(b""),
    "list for entry.json": lambda entry: (entry / "entry.json").write_text("[]"),
    "no entry.json": lambda entry: (entry / "entry.json").unlink(),
    "another key": _rename_key,
    "no files": lambda entry: __import__("shutil").rmtree(entry / "files"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_never_yielded_but_made_anew(store: Store, damage: str) -> None:
    entry = store.obtain(STAGE, fill)
    DAMAGES[damage](entry.files.parent)
    assert store.find(STAGE) is None
    again = store.obtain(STAGE, fill)
    assert not again.hit
    assert (again.files / "b.txt").read_text() == "b"
    assert sorted(path.name for path in again.files.iterdir()) == ["b.txt", "payload"]
    assert store.obtain(STAGE, never).hit


def _race(root: Path, log: Path, barrier: object) -> None:
    def make(folder: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.1)
        fill(folder)

    barrier.wait()  # type: ignore[attr-defined]
    Store(root).obtain(STAGE, make)


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_want_the_same_entry_make_it_once(store: Store, tmp_path: Path, damaged: bool) -> None:
    if damaged:
        _flip(store.obtain(STAGE, fill).files.parent)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    runs = [context.Process(target=_race, args=(store.root, tmp_path / "log", barrier)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_folder_of_a_killed_build_is_no_entry_and_gc_removes_it_when_old(store: Store) -> None:
    left = store.root / "tmp" / "left"
    fill_folder = left / "files"
    fill_folder.mkdir(parents=True)
    fill(fill_folder)
    assert store.gc() == 0
    old = time.time() - STALE_TMP_S - 60
    os.utime(left, (old, old))
    assert store.gc() == 101
    assert not left.exists()


def test_gc_removes_the_least_recently_used_first(store: Store) -> None:
    first, second = Store(store.root).obtain(STAGE, fill), Store(store.root).obtain(OTHER, fill)
    os.utime(first.files.parent / "entry.json", (1, 1))
    size = store.info().bytes // 2
    assert store.gc(max_bytes=size + 50) > 100
    assert Store(store.root).find(STAGE) is None
    assert Store(store.root).find(OTHER) is not None
    assert second.files.exists()
    assert store.gc(max_age_s=0) > 100
    assert store.info().entries == 0


def test_info_counts_by_stage_and_names_damaged_entries(store: Store) -> None:
    store.obtain(STAGE, fill)
    DAMAGES["truncated entry.json"](store.obtain(OTHER, fill).files.parent)
    assert {name: count for name, (count, _) in store.info().stages.items()} == {"build": 1, "(damaged)": 1}


def test_export_leaves_out_damaged_entries_and_import_takes_only_new_ones(store: Store, tmp_path: Path) -> None:
    store.obtain(STAGE, fill)
    _flip(store.obtain(OTHER, fill).files.parent)
    assert store.export(tmp_path / "out" / "cache.tar") == 1
    other = Store(tmp_path / "other")
    assert other.import_(tmp_path / "out" / "cache.tar") == 1
    assert other.import_(tmp_path / "out" / "cache.tar") == 0
    assert other.obtain(STAGE, never).hit


def _tar(path: Path, name: str, content: bytes, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def test_import_refuses_what_is_no_export(store: Store, tmp_path: Path) -> None:
    text = tmp_path / "text.tar"
    text.write_text("no tar")
    bad = [
        tmp_path / "missing.tar",
        tmp_path,
        text,
        _tar(tmp_path / "out.tar", "../escaped", b"x"),
        _tar(tmp_path / "root.tar", "/tmp/escaped", b"x"),
        _tar(tmp_path / "loose.tar", "loose", b"x"),
        _tar(tmp_path / "key.tar", f"{STAGE.digest}/entry.json", b"{}"),
        _tar(tmp_path / "packed.tar", f"{STAGE.digest}/entry.json", b"{}", "w:gz"),
    ]
    for path in bad:
        with pytest.raises(DataError):
            store.import_(path)
    assert store.info().entries == 0
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("place", ["root", "entries", "locks", "tmp"])
def test_file_in_the_way_of_the_store_is_a_storage_error(tmp_path: Path, place: str) -> None:
    root = tmp_path / "cache"
    (root if place == "root" else root / place).parent.mkdir(parents=True, exist_ok=True)
    (root if place == "root" else root / place).write_text("in the way")
    with pytest.raises(StorageError) as raised:
        Store(root).obtain(STAGE, fill)
    assert "FLEETC_CACHE" in raised.value.remedy


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_a_storage_error_for_cache_and_output(tmp_path: Path, number: int) -> None:
    for guard in (storage_errors, output_errors):
        with pytest.raises(StorageError, match="the disk is full"), guard(tmp_path):
            raise OSError(number, os.strerror(number))


def test_full_device_is_told_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is full"), output_errors(tmp_path):
        Path("/dev/full").write_bytes(b"x" * 100000)


def test_unwritable_output_is_a_usage_error_and_cache_is_not(tmp_path: Path) -> None:
    cases: list[tuple[Callable[[Path], object], type[CompilerError]]] = [
        (output_errors, OutputError),
        (storage_errors, StorageError),
    ]
    for guard, error in cases:
        with pytest.raises(error), guard(tmp_path):  # type: ignore[attr-defined]
            raise PermissionError(errno.EACCES, "Permission denied")
