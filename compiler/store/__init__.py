"""Finished stages, each under the digest of all that can change it: what is finished is not made again."""

from __future__ import annotations

from compiler.store.stages import BORDER_STAGES, MEASURED_STAGES, StageName, read_result, stage_key, write_result
from compiler.store.store import Entry, Stage, Store, canonical_json, file_digest, folder_digests

__all__ = [
    "BORDER_STAGES",
    "MEASURED_STAGES",
    "Entry",
    "Stage",
    "StageName",
    "Store",
    "canonical_json",
    "file_digest",
    "folder_digests",
    "read_result",
    "stage_key",
    "write_result",
]
