"""Which remote cache a build uses, and how it is opened."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from compiler.errors import UsageError
from compiler.store.keys import PrivateKey, PublicKey
from compiler.store.remote.blobs import Blobs
from compiler.store.remote.client import RemoteStore
from compiler.store.remote.folder import FolderBlobs
from compiler.store.remote.http import HttpBlobs
from compiler.store.remote.objects import ObjectBlobs

OBJECTS = ("s3", "gs", "az", "azure", "abfs", "abfss")


@dataclass(frozen=True)
class RemoteCache:
    """A remote cache, as the command line names it.

    Args:
        url: `http://…`, `https://…`, `s3://…`, `gs://…`, `az://…`, or `file://…` for a folder.
        trusted: Keys whose entries are used.
        token: Bearer token for `http`. Who has one offers the cache what a build finishes: the server signs it.
        ca: File of the authority that signed the server's certificate; None for those of the system.
    """

    url: str
    trusted: tuple[PublicKey, ...]
    token: str = field(default="", repr=False)
    ca: Path | None = None


def open_remote(cache: RemoteCache | None) -> RemoteStore | None:
    """The remote cache of a build; None where there is none. Nothing is asked over the network yet.

    Raises:
        UsageError: Its address is none, or no key is trusted.
        MissingError: A package for it is not installed.
    """
    if cache is None:
        return None
    if not cache.trusted:
        raise UsageError(
            "no key is trusted, and entries of a shared cache are used only if a trusted key has signed them",
            where="--remote-cache",
            remedy="Name the cache's public key: --trusted-key FILE or FLEETC_TRUSTED_KEYS.",
        )
    return RemoteStore(
        open_blobs(cache.url, token=cache.token, ca=cache.ca),
        trusted=cache.trusted,
        pushes=bool(cache.token),
        builder=f"workstation {socket.gethostname()}",
    )


def open_signing(url: str, key: PrivateKey, *, token: str = "") -> RemoteStore:
    """A remote cache that finished entries are put into, signed here.

    Raises:
        UsageError: Its address is none.
        MissingError: A package for it is not installed.
    """
    builder = f"key {key.public.id[:16]}"
    return RemoteStore(open_blobs(url, token=token), trusted=(key.public,), pushes=True, key=key, builder=builder)


def open_blobs(url: str, *, token: str = "", ca: Path | None = None) -> Blobs:
    """The bytes behind an address.

    Raises:
        UsageError: It is no address of a cache.
        MissingError: A package for it is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpBlobs(url, token=token, ca=ca)
    if parts.scheme in OBJECTS and parts.netloc:
        return ObjectBlobs(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderBlobs(Path(url2pathname(parts.path)))
    raise UsageError(
        f"'{parts.scheme or url}' is no kind of shared cache",
        where="--remote-cache",
        remedy="Write http://HOST/PATH, https://…, s3://BUCKET/PREFIX, gs://…, az://…, or file:///FOLDER.",
    )
