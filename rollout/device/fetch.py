"""Downloads for TUF's client, from a web server or from a folder; a server that is slow on purpose is left.

TUF's own downloader waits for every byte as long as the next one comes in time, so that a server that sends one now and
then holds a device for ever.
"""

from __future__ import annotations

import functools
import http.client
import io
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

GAP_S = 10.0
"""Seconds between two bytes, and until a connection stands."""

GRACE_S = 30.0
"""Seconds that every answer may take, however short it is."""

LEAST_BYTES_PER_S = 1024
"""What an answer must bring beyond that time: far less than the slowest link that a build would be sent over."""

CHUNK_BYTES = 1 << 16

HTTP_NOT_FOUND = 404


class WebFetcher(FetcherInterface):
    """Reads from a web server, by the proxies of the environment."""

    def __init__(self) -> None:
        self._opener = urllib.request.build_opener(_Handler, _SafeHandler)

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return _chunks(self._opener.open(url, timeout=GAP_S), url)
        except urllib.error.HTTPError as error:
            error.close()
            raise DownloadHTTPError(f"{url}: status {error.code}", error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise _named(error, url) from error


class FolderFetcher(FetcherInterface):
    """Reads from a folder or a stick."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
        if not path.is_file():
            raise DownloadHTTPError(f"{path} is not there", HTTP_NOT_FOUND)
        return iter([path.read_bytes()])


def _chunks(answer: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    try:
        with answer:
            while chunk := answer.read1(CHUNK_BYTES):
                yield chunk
            if answer.length:  # http.client takes an early end for the end
                raise DownloadError(f"{url}: the connection ended {answer.length} bytes too early")
    except (OSError, http.client.HTTPException) as error:
        raise _named(error, url) from error


def _named(error: Exception, url: str) -> DownloadError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return SlowRetrievalError(f"{url}: nothing came for {GAP_S:g} s")
    return DownloadError(f"{url}: {reason or type(reason).__name__}")


class _Judged(io.RawIOBase):
    """A stream that is left where it brings less than the least rate: head, lengths and content of an answer alike."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._since_s, self._received = raw, time.monotonic(), 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Reads what is there; waits for the first byte alone."""
        count: int | None = self._raw.readinto(buffer)
        self._received += count or 0
        took_s = time.monotonic() - self._since_s
        if took_s > GRACE_S + self._received / LEAST_BYTES_PER_S:
            raise SlowRetrievalError(f"{self._received} bytes in {took_s:.0f} s")
        return count

    def close(self) -> None:
        """Closes the connection."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Judged(self.fp.detach()))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SafeConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _SafeHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_SafeConnection, context=ssl.create_default_context()), req)
