"""The server's half of the cache protocol: an ASGI application over a folder, to be mounted below any path.

    HEAD, GET  cas/<SHA-256>, ac/<digest>     200 or 404
    PUT        cas/<SHA-256>                  the digest is computed from what arrives; 400 if it is another
    PUT        ac/<digest>                    every file is read again, the record is signed, then it is visible

Who may ask is decided by whoever mounts it. The key is here, and no model is ever opened here.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from compiler.store.disk import FULL
from compiler.store.envelope import dump, load, sign
from compiler.store.keys import PrivateKey, PublicKey
from compiler.store.remote.blobs import (
    CHUNK_BYTES,
    MAX_RECORD_BYTES,
    HashingWriter,
    Kind,
    digest_bytes,
    read_bytes,
    write_bytes,
)
from compiler.store.remote.entry import EntryRecord, StoredFile, action_result, from_envelope, record_of, to_envelope
from compiler.store.remote.folder import FolderBlobs

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

TARGET = re.compile(r"/?(cas|ac)/([0-9a-f]{64})")
MAX_FILE_BYTES = 64 << 30
"""Largest file that is taken: models of edge devices are far below."""


class CacheApp:
    """The application.

    Args:
        blobs: Where the bytes are.
        key: Signs entries.
        builder_of: ASGI scope of a request → who makes the entry that it offers, for the record.
        max_file_bytes: Largest file that is taken.
    """

    def __init__(
        self,
        blobs: FolderBlobs,
        key: PrivateKey,
        *,
        builder_of: Callable[[Message], str] = lambda scope: "",
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._blobs, self._key, self._builder_of, self._max_file_bytes = blobs, key, builder_of, max_file_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
        match = TARGET.fullmatch(path)
        if match is None:
            await _answer(send, 400, "the path is cas/ or ac/ and a SHA-256 in lower case")
            return
        kind, digest = Kind(match[1]), match[2]
        if scope["method"] in ("GET", "HEAD"):
            await self._get(kind, digest, send, with_body=scope["method"] == "GET")
        elif scope["method"] == "PUT":
            try:
                await self._put(kind, digest, scope, receive, send)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                await _answer(send, 507, "the disk of the cache is full")
        else:
            await _answer(send, 405, "GET, HEAD and PUT are spoken here")

    async def _get(self, kind: Kind, digest: str, send: Send, *, with_body: bool) -> None:
        if not await asyncio.to_thread(self._blobs.holds, kind, digest):
            await _answer(send, 404, "")
            return
        try:
            file = await asyncio.to_thread(self._blobs.path(kind, digest).open, "rb")
        except FileNotFoundError:  # removed in between
            await _answer(send, 404, "")
            return
        with file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            media = b"application/json" if kind == Kind.AC else b"application/octet-stream"
            headers = [(b"content-length", b"%d" % size), (b"content-type", media)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while with_body and (chunk := await asyncio.to_thread(file.read, CHUNK_BYTES)):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _put(self, kind: Kind, digest: str, scope: Message, receive: Receive, send: Send) -> None:
        limit = MAX_RECORD_BYTES if kind == Kind.AC else self._max_file_bytes
        with self._blobs.draft() as draft:
            body = await _receive(draft, receive, limit=limit)
            if body is None:
                return  # the client is gone, and what it sent of no use
            if body.size > limit:
                await _answer(send, 413, f"more than {limit} bytes")
                return
            if kind == Kind.AC:
                status, text = await asyncio.to_thread(self._admit, digest, draft, self._builder_of(scope))
            elif body.hexdigest != digest:
                status, text = 400, f"the bytes have the digest {body.hexdigest}"
            else:
                await asyncio.to_thread(self._blobs.adopt, draft, kind, digest, replace=True)
                status, text = 200, ""
        await _answer(send, status, text)

    def _admit(self, digest: str, draft: Path, builder: str) -> tuple[int, str]:
        """Signs an entry and makes it visible. An entry that is there already, and whole, stays as it is."""
        if entry_is_whole(self._blobs, digest, self._key.public):
            return 200, ""
        try:
            result = admit_entry(self._blobs, digest, draft.read_bytes(), self._key, builder=builder)
        except ValueError as error:
            return 422, str(error)
        write_bytes(self._blobs, Kind.AC, digest, result, replace=True)
        return 200, ""


def admit_entry(blobs: FolderBlobs, digest: str, raw: bytes, key: PrivateKey, *, builder: str) -> bytes:
    """An ActionResult whose record this key has signed, after every file was read and compared with its digest.

    Args:
        blobs: Where the files are.
        digest: Key of the entry.
        raw: The ActionResult that was offered.
        key: Signs.
        builder: Who made the entry, by whoever knows that better than the one who offers it; its own word where empty.

    Raises:
        ValueError: It is no such entry, of another stage, or a file is missing or of other bytes.
    """
    place = record_of(raw)
    record = read_bytes(blobs, Kind.CAS, place.sha256)
    if record is None:
        raise ValueError("the record is missing: files are written before the entry")
    envelope = load(record)
    entry = from_envelope(envelope)
    if entry.stage.digest != digest:
        raise ValueError("the record is of another stage")
    missing = [name for name, file in sorted(entry.files.items()) if not _is_whole(blobs, file)]
    if missing:
        raise ValueError(f"missing, or of other bytes: {', '.join(missing)}")
    if builder and builder != entry.builder:
        entry = EntryRecord(entry.stage, entry.files, entry.seconds, builder)
        envelope = to_envelope(entry)
    signed = dump(sign(envelope, key))
    write_bytes(blobs, Kind.CAS, digest_bytes(signed), signed, replace=True)
    return action_result(entry, signed)


def entry_is_whole(blobs: FolderBlobs, digest: str, key: PublicKey) -> bool:
    """Whether an entry is there that a key has signed, with all of its files; asking counts as use of each."""
    try:
        raw = read_bytes(blobs, Kind.AC, digest)
        if raw is None:
            return False
        record = read_bytes(blobs, Kind.CAS, record_of(raw).sha256)
        if record is None or not (envelope := load(record)).signed_by(key):
            return False
        files = from_envelope(envelope).files.values()
    except ValueError:
        return False
    return all(blobs.holds(Kind.CAS, file.sha256) for file in files)


def _is_whole(blobs: FolderBlobs, file: StoredFile) -> bool:
    writer = HashingWriter(None)
    is_there = blobs.read(Kind.CAS, file.sha256, writer, limit=file.bytes)
    return is_there and (writer.size, writer.hexdigest) == (file.bytes, file.sha256)


async def _receive(draft: Path, receive: Receive, *, limit: int) -> HashingWriter | None:
    """Writes a request's body into a draft. Returns its size and digest; None if the client left before the end."""
    with draft.open("xb") as file:
        body = HashingWriter(file, limit=limit)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            if chunk := message.get("body", b""):
                await asyncio.to_thread(body.write, chunk)
            if body.size > limit or not message.get("more_body", False):
                return body


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
