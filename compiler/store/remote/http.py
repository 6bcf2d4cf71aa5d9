"""A remote cache behind HTTP: Bazel's protocol, as fleetc's server, bazel-remote and nginx with WebDAV speak it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from compiler.errors import MissingError, UsageError
from compiler.store.remote.blobs import CHUNK_BYTES, CacheUnreachable, Kind, Sink, WriteRefused

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

# a cache that cannot be reached must not hold up a build that can do without
CONNECT_S = 5.0
READ_S = 60.0
"""Longest silence: a server that looks for a large file on a slow disk needs less."""

REST_BYTES = 64 << 10
"""Of an answer that is not wanted, so much is read for the sake of the connection."""

# for a server that is just being restarted; beyond that it is quicker to make the entry here
RETRIES = 2
BACKOFF_S = 0.2
CONNECTIONS = 8
"""Kept open at a time: devices that are built side by side."""

REFUSED = frozenset({401, 403, 405, 409, 412, 413, 422, 501, 507})
"""Answers to a PUT that say no and not that something is broken."""


class HttpBlobs:
    """Bytes under digests behind HTTP; one object serves several threads.

    Args:
        url: Where `cas/` and `ac/` are; a user and password in it are sent as basic authentication.
        token: Sent as bearer token; empty: none.
        ca: File of the authority that signed the server's certificate; None for those of the system.

    Raises:
        UsageError: It is no such address.
        MissingError: The package `urllib3` is not installed.
    """

    def __init__(self, url: str, *, token: str = "", ca: Path | None = None) -> None:
        try:
            import urllib3
        except ModuleNotFoundError as error:
            remedy = "Install it: pip install 'fleetc[trust]'."
            raise MissingError("a shared cache by HTTP needs the package urllib3", remedy=remedy) from error
        try:
            parts = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError as error:
            raise UsageError(f"no address of a shared cache: {error}", where="--remote-cache") from error
        place = urllib3.util.Url(parts.scheme, host=parts.host, port=parts.port, path=parts.path)
        self._url = place.url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity", **_authorization(parts.auth or "", token)}
        retries = urllib3.Retry(
            RETRIES,
            backoff_factor=BACKOFF_S,
            status_forcelist=(502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
            redirect=0,
        )
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS,
            block=True,
            retries=retries,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            ca_certs=str(ca) if ca else None,
        )

    @property
    def place(self) -> str:
        """The address without a password."""
        return self._url

    def holds(self, kind: Kind, digest: str) -> bool:
        """Whether something is there; asking counts as use."""
        with self._ask("HEAD", kind, digest) as answer:
            self._refuse_failure(answer)
            return answer.status != 404

    def read(self, kind: Kind, digest: str, into: Sink, *, limit: int) -> bool:
        """Copies what is there into a file, and no more than `limit` + 1 bytes of it. Returns False if nothing is."""
        accept = {"Accept": "application/json"} if kind == Kind.AC else {}
        with self._ask("GET", kind, digest, headers=accept) as answer:
            self._refuse_failure(answer)
            if answer.status == 404:
                return False
            size = 0
            for chunk in self._chunks(answer):
                into.write(chunk)
                size += len(chunk)
                if size > limit:
                    answer.close()
                    break
            return True

    def write(self, kind: Kind, digest: str, source: BinaryIO, size: int, *, replace: bool) -> bool:
        """Writes bytes, whole or not at all. Returns False if something was there already and `replace` is False."""
        media = "application/json" if kind == Kind.AC else "application/octet-stream"
        headers = {"Content-Type": media, "Content-Length": str(size), **({} if replace else {"If-None-Match": "*"})}
        with self._ask("PUT", kind, digest, headers=headers, body=source) as answer:
            if answer.status == 412 and not replace:
                return False
            if answer.status in REFUSED:
                said = answer.read(200).decode(errors="replace").strip()
                raise WriteRefused(f"the shared cache may not be written: {answer.status} {said}", where=self.place)
            self._refuse_failure(answer)
            if answer.status == 404:
                raise WriteRefused("the shared cache may not be written: 404", where=self.place)
            return True

    @contextmanager
    def _ask(
        self,
        method: str,
        kind: Kind,
        digest: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: BinaryIO | None = None,
    ) -> Iterator[BaseHTTPResponse]:
        from urllib3.exceptions import HTTPError

        try:
            answer = self._pool.request(
                method,
                f"{self._url}/{kind}/{digest}",
                headers={**self._headers, **(headers or {})},
                body=body,
                preload_content=False,
                redirect=False,
            )
        except HTTPError as error:
            raise self._unreachable(_reason(error)) from error
        is_reusable = False
        try:
            yield answer
            # what is left is read, and no more than an error page: otherwise it would be taken for the next answer
            is_reusable = not answer.closed and len(answer.read(REST_BYTES)) < REST_BYTES
        except HTTPError as error:
            raise self._unreachable(_reason(error)) from error
        finally:
            if is_reusable:
                answer.release_conn()
            else:
                answer.close()

    def _chunks(self, answer: BaseHTTPResponse) -> Iterator[bytes]:
        yield from answer.stream(CHUNK_BYTES, decode_content=False)

    def _refuse_failure(self, answer: BaseHTTPResponse) -> None:
        if answer.status != 404 and not 200 <= answer.status < 300:
            advice = "Check the token, or user and password." if answer.status in (401, 403) else ""
            raise self._unreachable(f"it answers {answer.status} {answer.reason or ''}".strip(), remedy=advice)

    def _unreachable(self, why: str, *, remedy: str = "") -> CacheUnreachable:
        return CacheUnreachable(f"the shared cache cannot be used: {why}", where=self.place, remedy=remedy)


def _authorization(user: str, token: str) -> dict[str, str]:
    from urllib3.util import make_headers

    if token:
        return {"Authorization": f"Bearer {token}"}
    return make_headers(basic_auth=user) if user else {}


def _reason(error: Exception) -> str:
    """The innermost cause: the outer ones are about urllib3's own attempts."""
    while isinstance(cause := getattr(error, "reason", None) or error.__cause__, Exception):
        error = cause
    return f"{type(error).__name__}: {error}"
