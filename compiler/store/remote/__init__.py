"""The remote half of the store: entries that others finished, fetched by Bazel's HTTP cache protocol or from objects.

cas/<SHA-256>          a file, or the record of an entry: a DSSE envelope with stage, key parts and every file's digest
ac/<stage's digest>    an ActionResult in JSON that lists them: what makes an entry visible

An entry is read only if a trusted key has signed it, and only if every byte is what was signed.
"""

from __future__ import annotations

from compiler.store.remote.blobs import Blobs, CacheUnreachable, Kind, WriteRefused
from compiler.store.remote.cache import RemoteCache, open_blobs, open_remote, open_signing
from compiler.store.remote.client import RemoteStore
from compiler.store.remote.folder import FolderBlobs

__all__ = [
    "Blobs",
    "CacheUnreachable",
    "FolderBlobs",
    "Kind",
    "RemoteCache",
    "RemoteStore",
    "WriteRefused",
    "open_blobs",
    "open_remote",
    "open_signing",
]
