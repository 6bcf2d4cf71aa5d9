"""A remote cache as plain objects in S3, Google Cloud Storage or Azure, through obstore.

Credentials are those that obstore finds, as other tools do: AWS_ACCESS_KEY_ID, instance roles, ….
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from compiler.errors import MissingError, UsageError
from compiler.store.remote.blobs import CHUNK_BYTES, CacheUnreachable, Kind, Sink, WriteRefused

RETRIES = 2


class ObjectBlobs:
    """Bytes under digests, an object each.

    Args:
        url: `s3://bucket/prefix`, `gs://…` or `az://…`.

    Raises:
        UsageError: It is no such address.
        MissingError: The package `obstore` is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore.exceptions
            import obstore.store
        except ModuleNotFoundError as error:
            remedy = "Install it: pip install 'fleetc[s3]'."
            raise MissingError("a shared cache of objects needs the package obstore", remedy=remedy) from error
        self._exceptions: Any = obstore.exceptions
        self._url = url.rstrip("/")
        try:
            self._store: Any = obstore.store.from_url(self._url, retry_config={"max_retries": RETRIES})
        except obstore.exceptions.BaseError as error:
            raise UsageError(f"no address of a shared cache: {_first_line(error)}", where=url) from error

    @property
    def place(self) -> str:
        """The address."""
        return self._url

    def holds(self, kind: Kind, digest: str) -> bool:
        """Whether something is there; asking does not count as use: a rule of the bucket goes by age."""
        with self._errors():
            try:
                self._store.head(f"{kind}/{digest}")
            except (FileNotFoundError, self._exceptions.NotFoundError):
                return False
            return True

    def read(self, kind: Kind, digest: str, into: Sink, *, limit: int) -> bool:
        """Copies what is there into a file, and no more than `limit` + 1 bytes of it. Returns False if nothing is."""
        with self._errors():
            try:
                chunks = self._store.get(f"{kind}/{digest}").stream(min_chunk_size=CHUNK_BYTES)
            except (FileNotFoundError, self._exceptions.NotFoundError):
                return False
        size = 0
        while chunk := self._next(chunks):
            into.write(chunk)
            size += len(chunk)
            if size > limit:
                break
        return True

    def write(self, kind: Kind, digest: str, source: BinaryIO, size: int, *, replace: bool) -> bool:
        """Writes an object, whole or not at all.

        Returns:
            False if an entry was there already and `replace` is False.
        """
        # what lies under its own digest can be written twice, and large files go in parts; a write on condition is one
        # request, which is for entries: they are small
        how = {} if kind == Kind.CAS or replace else {"mode": "create", "use_multipart": False}
        with self._errors():
            try:
                self._store.put(f"{kind}/{digest}", source, **how)
            except (FileExistsError, self._exceptions.AlreadyExistsError):
                return False
            except (self._exceptions.PermissionDeniedError, self._exceptions.UnauthenticatedError) as error:
                reason = f"the shared cache may not be written: {_first_line(error)}"
                raise WriteRefused(reason, where=self.place) from error
            return True

    def _next(self, chunks: Any) -> bytes:
        """The next bytes; none at the end."""
        with self._errors():
            return bytes(next(chunks, b""))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._exceptions.BaseError as error:
            raise CacheUnreachable(
                f"the shared cache cannot be used: {_first_line(error)}",
                where=self.place,
                remedy="Check the address and the credentials in the environment.",
            ) from error


def _first_line(error: Exception) -> str:
    """What is wrong; the lines below are obstore's own state."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
