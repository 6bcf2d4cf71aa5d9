"""A shared cache that is dead, slow, closed or read-only is said once, and the build goes on alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compiler.errors import UsageError
from compiler.store import Stage, Store
from compiler.store.keys import PrivateKey
from compiler.store.remote import CacheUnreachable, Kind, RemoteCache, RemoteStore, open_blobs, open_remote
from compiler.store.remote.blobs import read_bytes
from compiler.store.remote.http import HttpBlobs

pytest.importorskip("cryptography", reason="needs the extra trust")
pytest.importorskip("urllib3", reason="needs the extra trust")

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything in one way, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(f"{self.command} {self.headers.get('Authorization', '')}".strip())
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        do_GET = do_HEAD = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", asked
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def status(code: int, *, put: int | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(put if put is not None and handler.command == "PUT" else code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


def redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/stolen")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def make(folder: Path) -> None:
    (folder / "file").write_bytes(b"made here")


def build(url: str, key: PrivateKey, root: Path) -> None:
    """Two stages, made with the cache."""
    remote = RemoteStore(open_blobs(url), trusted=[key.public], pushes=True)
    store = Store(root, remote=remote)
    for name in ("rewrite", "compile"):
        assert not store.obtain(Stage(name, ()), make).hit


def said(caplog: pytest.LogCaptureFixture) -> str:
    ours = [record for record in caplog.records if record.name.startswith("fleetc")]
    (record,) = [record for record in ours if record.levelno >= logging.WARNING]
    return record.getMessage()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(500), "it answers 500"),
        (status(401), "Check the token"),
        (cut, "IncompleteRead"),
        (redirect, "it answers 302"),
    ],
    ids=["broken", "closed", "cut off", "redirected"],
)
def test_a_cache_that_fails_is_said_once_and_left_alone(
    answer: Answer, words: str, key: PrivateKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(answer) as (url, asked):
        build(url, key, tmp_path)
    assert words in said(caplog) and "goes on with the cache of this machine alone" in said(caplog)
    assert len(asked) == 1


def test_a_cache_that_is_not_there_is_said_once(
    key: PrivateKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(status(404)) as (url, _):
        pass
    build(url, key, tmp_path)
    assert "Connection refused" in said(caplog)


def test_a_share_that_is_not_mounted_is_said_once(
    key: PrivateKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(f"file://{tmp_path}/share", key, tmp_path / "store")
    assert "No such file or directory" in said(caplog)


@pytest.mark.parametrize("code", [401, 403, 405])
def test_a_cache_that_may_only_be_read_is_said_once_and_goes_on_being_read(
    code: int, key: PrivateKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(status(404, put=code)) as (url, asked):
        build(url, key, tmp_path)
    assert "may not be written" in said(caplog) and "what is finished here is not shared" in said(caplog)
    assert asked.count("PUT") == 1 and asked[-1] == "GET"


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Sends for as long as somebody reads."""
    handler.send_response(200 if handler.command == "GET" else 404)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 65536)
    except OSError:
        handler.close_connection = True


@pytest.mark.timeout(60)
def test_no_more_than_the_limit_is_read_of_an_endless_answer(key: PrivateKey) -> None:
    with server(endless) as (url, _):
        blobs = open_blobs(url)
        with pytest.raises(ValueError, match="more than 1000000 bytes"):
            read_bytes(blobs, Kind.CAS, "0" * 64, limit=1000000)
        assert not blobs.holds(Kind.CAS, "0" * 64)


def test_user_and_password_are_sent_and_not_shown(key: PrivateKey) -> None:
    with server(status(500)) as (url, asked):
        blobs = HttpBlobs(url.replace("http://", "http://anna:secret@"))
        with pytest.raises(CacheUnreachable) as caught:
            blobs.holds(Kind.CAS, "0" * 64)
    assert asked == ["HEAD Basic YW5uYTpzZWNyZXQ="]
    assert "secret" not in str(caught.value) + blobs.place


def test_a_token_is_sent_and_not_shown(key: PrivateKey) -> None:
    cache = RemoteCache("http://127.0.0.1:9/", (key.public,), "top-secret")
    assert "top-secret" not in repr(cache) + repr(open_remote(cache))
    with server(status(404)) as (url, asked):
        assert not open_blobs(url, token="top-secret").holds(Kind.AC, "0" * 64)
    assert asked == ["HEAD Bearer top-secret"]


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "cache.example", "http://", "file://host/share", "s3://", "/mnt/cache"]
)
def test_what_is_no_address_is_usage(url: str) -> None:
    with pytest.raises(UsageError, match="no kind of shared cache"):
        open_blobs(url)


def test_a_cache_without_a_trusted_key_is_usage() -> None:
    with pytest.raises(UsageError, match="no key is trusted"):
        open_remote(RemoteCache("http://127.0.0.1:9", ()))


def test_stages_do_not_depend_on_where_they_come_from() -> None:
    from compiler.store.digests import closure_packages, find_closure

    module = "compiler.driver.stages.compile"
    assert not {"cryptography", "urllib3", "obstore"} & set(closure_packages(module))
    assert not [name for name, _ in find_closure(module).files if name.startswith("compiler.store.remote")]
