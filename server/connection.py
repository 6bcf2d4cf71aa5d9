"""HTTP as client and workers speak it: JSON and files, with the server's refusals as our errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import urllib3

from compiler.errors import CompilerError, ServerError, from_dict
from compiler.store.atomic import write_atomic
from compiler.store.disk import storage_errors

T = TypeVar("T")
TIMEOUT = urllib3.Timeout(connect=5.0, read=60.0)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
CHUNK_BYTES = 1 << 20
LATER = (429, 503)
"""Answers of a server that is asked too often, or is being stopped or started."""


class Refusal(Exception):
    """The server's answer is a refusal.

    Args:
        status: The HTTP status.
        problem: The RFC 9457 document, or what there is of one.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status, self.problem = status, problem
        super().__init__(f"{status}: {problem.get('detail', '')}")

    def error(self, url: str) -> CompilerError:
        """The refusal as one of our errors."""
        if "what" in self.problem:
            return from_dict(dict(self.problem))
        detail, remedy = str(self.problem.get("detail", "no reason is given")), str(self.problem.get("remedy", ""))
        if self.status == 401 and not remedy:
            remedy = "Give the key that `fleetc server` printed with --key or FLEETC_KEY."
        return ServerError(f"the server refuses ({self.status}): {detail}", where=url, remedy=remedy)


class Unreachable(Exception):
    """No whole answer came."""


class Connection:
    """A server as one key or token sees it.

    Args:
        url: `http://host:port` or `https://…`.
        token: Sent as bearer.
        ca: File of the authority that signed the server's certificate; None for those of the system.
        patience_s: How long a call that gets no answer is tried again; may be changed.
        stopping: Once it is set, nothing is tried again.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: Path | None = None,
        patience_s: float = 0.0,
        stopping: threading.Event | None = None,
    ) -> None:
        self.url, self.patience_s, self._stopping = url.rstrip("/"), patience_s, stopping or threading.Event()
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(
            ca_certs=str(ca) if ca else None, timeout=TIMEOUT, retries=False, maxsize=4, block=False
        )

    def get(self, path: str) -> Any:
        """A JSON document."""
        return self.call("GET", path)

    def post(self, path: str, value: object = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """Sends a JSON document; returns the one that comes back."""
        return self.call("POST", path, body=json.dumps(value).encode(), headers=headers)

    def call(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """One request with its JSON answer; None where the answer has no body.

        Raises:
            Refusal: The server refuses.
            Unreachable: No answer came, however often it was tried.
        """
        sent = {**self._headers, "Content-Type": "application/json", **(headers or {})}

        def once() -> Any:
            answer = self._pool.request(method, self.url + path, body=body, headers=sent, redirect=False)
            return _value(answer.status, answer.data)

        return self._patiently(once)

    def upload(self, path: str, file: Path) -> Any:
        """PUTs a whole file."""

        def once() -> Any:
            with file.open("rb") as stream:
                headers = {**self._headers, "Content-Length": str(file.stat().st_size)}
                answer = self._pool.request("PUT", self.url + path, body=stream, headers=headers, redirect=False)
                return _value(answer.status, answer.data)

        return self._patiently(once)

    def upload_part(self, path: str, body: bytes, *, first: int, total: int) -> Any:
        """PUTs a part of a file; it is not tried again, since what has arrived of it must be asked for."""
        content_range = f"bytes {first}-{first + len(body) - 1}/{total}" if total else "bytes */0"
        headers = {**self._headers, "Content-Range": content_range}
        try:
            answer = self._pool.request("PUT", self.url + path, body=body, headers=headers, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(str(error)) from error
        return _value(answer.status, answer.data)

    def download(self, path: str, target: Path) -> None:
        """GETs a file, which is there whole or not at all.

        Raises:
            StorageError: The disk is full, or may not be written.
            Refusal: The server refuses.
            Unreachable: No whole answer came, however often it was tried.
        """

        def once() -> None:
            answer = self._pool.request(
                "GET", self.url + path, headers=self._headers, redirect=False, preload_content=False
            )
            try:
                if answer.status != 200:
                    _value(answer.status, answer.read(1 << 16))
                # what the disk says is no fault of the network, and is not tried again
                with storage_errors(target.parent):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(target, lambda file: _copy(answer, file))
            finally:
                answer.release_conn()

        self._patiently(once)

    def events(self, path: str, *, last: int = 0, read_s: float = 45.0) -> Iterator[tuple[int, str, str]]:
        """Server-sent events from one connection: id, kind and data; ends when the server ends it.

        Raises:
            Refusal: The server refuses.
            Unreachable: The connection broke.
        """
        headers = {**self._headers, "Last-Event-ID": str(last)} if last else self._headers
        timeout = urllib3.Timeout(connect=5.0, read=read_s)
        try:
            answer = self._pool.request(
                "GET", self.url + path, headers=headers, redirect=False, preload_content=False, timeout=timeout
            )
            try:
                if answer.status != 200:
                    _value(answer.status, answer.read(1 << 16))
                yield from _parse_events(answer)
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(str(error)) from error

    def _patiently(self, once: Callable[[], T]) -> T:
        deadline, pause = time.monotonic() + self.patience_s, FIRST_PAUSE_S
        while True:
            is_last = time.monotonic() + pause > deadline or self._stopping.is_set()
            try:
                return once()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if is_last:
                    raise Unreachable(str(error)) from error
            except Refusal as refusal:
                if refusal.status not in LATER or is_last:
                    raise
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def _copy(answer: urllib3.BaseHTTPResponse, file: Any) -> None:
    for chunk in answer.stream(CHUNK_BYTES):
        file.write(chunk)


def _value(status: int, raw: bytes) -> Any:
    try:
        value = json.loads(raw) if raw else None
    except ValueError:
        value = {"detail": raw[:200].decode("utf-8", "replace")}
    if 200 <= status < 300:
        return value
    raise Refusal(status, value if isinstance(value, dict) else {})


def _parse_events(answer: urllib3.BaseHTTPResponse) -> Iterator[tuple[int, str, str]]:
    identity, kind, data = 0, "message", list[str]()
    for raw in _lines(answer):
        line = raw.decode("utf-8", "replace")
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield identity, kind, "\n".join(data)
            kind, data = "message", []
        elif name == "id":
            identity = int(value) if value.isdecimal() else identity
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in answer.read_chunked() if getattr(answer, "chunked", False) else answer.stream(1024):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.rstrip(b"\r") for line in lines)
