"""The cache's application below a path of somebody else's server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from compiler.store.keys import PrivateKey
from compiler.store.remote import FolderBlobs, Kind
from compiler.store.remote.blobs import digest_bytes, write_bytes
from compiler.store.remote.handler import CacheApp

BODY = b"bytes"


def ask(app: Any, method: str, path: str, *messages: dict[str, Any], root_path: str = "") -> list[dict[str, Any]]:
    """One request by ASGI, as a server makes it. Returns what the application sent."""
    sent: list[dict[str, Any]] = []
    waiting = list(messages or [{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return sent


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


def test_a_path_below_the_mounting_point_is_answered(blobs: FolderBlobs, key: PrivateKey) -> None:
    starlette = pytest.importorskip("starlette.applications", reason="needs the extra serve")
    routing = pytest.importorskip("starlette.routing")
    app = starlette.Starlette(routes=[routing.Mount("/projects/face/cache", CacheApp(blobs, key))])
    write_bytes(blobs, Kind.CAS, digest_bytes(BODY), BODY, replace=False)
    start, *bodies = ask(app, "GET", f"/projects/face/cache/cas/{digest_bytes(BODY)}")
    assert start["status"] == 200
    assert b"".join(message["body"] for message in bodies) == BODY


def test_an_upload_that_breaks_off_leaves_nothing(blobs: FolderBlobs, key: PrivateKey) -> None:
    half = {"type": "http.request", "body": BODY, "more_body": True}
    sent = ask(CacheApp(blobs, key), "PUT", f"/cas/{digest_bytes(BODY)}", half, {"type": "http.disconnect"})
    assert sent == []
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


def test_an_upload_beyond_the_limit_is_refused_before_its_end(blobs: FolderBlobs, key: PrivateKey) -> None:
    app = CacheApp(blobs, key, max_file_bytes=3)
    endless = {"type": "http.request", "body": BODY, "more_body": True}
    start, _ = ask(app, "PUT", f"/cas/{digest_bytes(BODY)}", endless)
    assert start["status"] == 413
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_said_to_the_client(
    blobs: FolderBlobs, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("pathlib.Path.replace", full)
    upload = {"type": "http.request", "body": BODY}
    start, _ = ask(CacheApp(blobs, key), "PUT", f"/cas/{digest_bytes(BODY)}", upload)
    assert start["status"] == 507
