"""The server's half: nothing becomes visible that is not whole and signed, whatever is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.store import Store
from compiler.store.envelope import dump, sign
from compiler.store.keys import generate_key
from compiler.store.remote import FolderBlobs, Kind, RemoteStore, open_blobs
from compiler.store.remote.blobs import digest_bytes, write_bytes
from compiler.store.remote.entry import action_result, read_entry, to_envelope
from tests.unit.compiler.store.remote.conftest import STAGE, Cache

urllib3 = pytest.importorskip("urllib3", reason="needs the extra trust")


pytestmark = pytest.mark.parametrize("cache", ["http"], indirect=True)


@pytest.fixture
def web(cache: Cache) -> Cache:
    """The cache behind the server; each test is run with that kind alone."""
    return cache


def ask(web: Cache, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    answer = urllib3.request(method, f"{web.url}/{path}", body=body, retries=False)
    return answer.status, answer.data.decode()


def entry_folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "one")
    store.obtain(STAGE, lambda folder: (folder / "file").write_bytes(b"bytes") and None)
    return store.entries()[0]


@pytest.mark.parametrize(
    "path",
    ["", "cas", f"cas/{'A' * 64}", f"cas/{'0' * 63}", f"cas/../../{'0' * 64}", f"ac/{'0' * 64}/x", f"x/{'0' * 64}"],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_other_paths_are_refused(path: str, method: str, web: Cache) -> None:
    assert ask(web, method, path, b"")[0] == 400


def test_other_methods_are_refused(web: Cache) -> None:
    assert ask(web, "DELETE", f"cas/{'0' * 64}")[0] == 405


def test_what_is_not_there_is_404(web: Cache) -> None:
    assert ask(web, "GET", f"cas/{'0' * 64}")[0] == 404
    assert ask(web, "HEAD", f"ac/{'0' * 64}")[0] == 404


def test_bytes_under_another_digest_are_refused_and_leave_nothing(web: Cache) -> None:
    code, said = ask(web, "PUT", f"cas/{'0' * 64}", b"bytes")
    assert (code, said) == (400, f"the bytes have the digest {digest_bytes(b'bytes')}")
    assert isinstance(web.behind, FolderBlobs)
    assert [path for path in web.behind.root.rglob("*") if path.is_file()] == []


def test_bytes_under_their_digest_are_read_back(web: Cache) -> None:
    digest = digest_bytes(b"bytes")
    assert ask(web, "PUT", f"cas/{digest}", b"bytes")[0] == 200
    assert ask(web, "PUT", f"cas/{digest}", b"bytes")[0] == 200
    assert ask(web, "GET", f"cas/{digest}") == (200, "bytes")


def offer(web: Cache, folder: Path, record: bytes, *, with_files: bool = True) -> bytes:
    """Puts a record, and the file it names, where the server keeps them. Returns the ActionResult to be sent."""
    entry = read_entry(folder, builder="whoever")
    write_bytes(web.behind, Kind.CAS, digest_bytes(record), record, replace=True)
    if with_files:
        write_bytes(web.behind, Kind.CAS, digest_bytes(b"bytes"), b"bytes", replace=True)
    return action_result(entry, record)


def test_an_entry_without_its_files_is_refused(web: Cache, tmp_path: Path) -> None:
    folder = entry_folder(tmp_path)
    result = offer(web, folder, dump(to_envelope(read_entry(folder, builder=""))), with_files=False)
    code, said = ask(web, "PUT", f"ac/{STAGE.digest}", result)
    assert (code, said) == (422, "missing, or of other bytes: file")
    assert ask(web, "GET", f"ac/{STAGE.digest}")[0] == 404


def test_an_entry_whose_files_have_changed_on_the_disk_is_refused(web: Cache, tmp_path: Path) -> None:
    folder = entry_folder(tmp_path)
    result = offer(web, folder, dump(to_envelope(read_entry(folder, builder=""))))
    write_bytes(web.behind, Kind.CAS, digest_bytes(b"bytes"), b"other", replace=True)
    assert ask(web, "PUT", f"ac/{STAGE.digest}", result)[0] == 422


def test_an_entry_under_the_key_of_another_is_refused(web: Cache, tmp_path: Path) -> None:
    folder = entry_folder(tmp_path)
    result = offer(web, folder, dump(to_envelope(read_entry(folder, builder=""))))
    code, said = ask(web, "PUT", f"ac/{'0' * 64}", result)
    assert (code, said) == (422, "the record is of another stage")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\x08\x01", b"[" * 99999, b'{"outputFiles": [{"path": 7}]}'])
def test_what_is_no_entry_is_refused(body: bytes, web: Cache) -> None:
    assert ask(web, "PUT", f"ac/{STAGE.digest}", body)[0] == 422


def test_an_entry_signed_by_an_older_key_is_signed_again(web: Cache, tmp_path: Path) -> None:
    folder = entry_folder(tmp_path)
    record = dump(sign(to_envelope(read_entry(folder, builder="")), generate_key()))
    write_bytes(web.behind, Kind.AC, STAGE.digest, offer(web, folder, record), replace=True)
    writer = RemoteStore(open_blobs(web.url), trusted=[web.key.public], pushes=True)
    assert writer.upload(folder)
    assert web.reader().fetch(STAGE, tmp_path)
    assert not writer.upload(folder)


def test_what_was_not_used_for_longest_is_removed_first(web: Cache) -> None:
    assert isinstance(web.behind, FolderBlobs)
    digests = [digest_bytes(bytes([number])) for number in range(3)]
    for number, digest in enumerate(digests):
        web.replace(Kind.CAS, digest, bytes([number]) * 100)
        os.utime(web.behind.path(Kind.CAS, digest), (number, number))
    assert ask(web, "HEAD", f"cas/{digests[0]}")[0] == 200
    assert web.behind.remove_oldest(max_bytes=200) == 100
    assert [web.behind.holds(Kind.CAS, digest) for digest in digests] == [True, False, True]
