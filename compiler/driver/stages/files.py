"""A stage's result that is a model: the file, what the passes did beside it, and its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.manifest import BORDER, BORDER_DATA
from compiler.model.save import save_model
from compiler.store import Entry, file_digest, read_result, write_result

RECORDS = "passes.json"

EMBED_BYTES = 256 << 20
"""Weights of more than this lie in `border.data`, from where they can be mapped instead of read."""


def save_stage(model: ir.Model, folder: Path, records: Sequence[dict[str, Any]] = ()) -> None:
    """Writes the model that a stage leaves, and what each pass of it did."""
    save_model(model, folder / BORDER, external_above_bytes=EMBED_BYTES)
    write_result(folder, RECORDS, list(records))


def load_stage(entry: Entry) -> ir.Model:
    """The model that a stage left, its weights mapped from the file."""
    return ir.load(entry.files / BORDER)


def read_records(entry: Entry) -> list[dict[str, Any]]:
    """What each pass of a stage did; empty for a stage without passes."""
    records: list[dict[str, Any]] = read_result(entry, RECORDS)
    return records


def border_digest(entry: Entry) -> str:
    """SHA-256 of an entry's model, and of the weights beside it if there are."""
    data = entry.files / BORDER_DATA
    digest = file_digest(entry.files / BORDER)
    return f"{digest}+{file_digest(data)}" if data.exists() else digest
