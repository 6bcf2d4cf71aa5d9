"""Finished stages, each under the digest of all that can change it."""

from __future__ import annotations

from compiler.store.store import Entry, Stage, Store, canonical_json, file_digest, folder_digests

__all__ = ["Entry", "Stage", "Store", "canonical_json", "file_digest", "folder_digests"]
