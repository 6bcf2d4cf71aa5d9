"""Results on stdout: one JSON document, or text."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import click

PARTIAL: dict[str, Any] = {}
"""What a command found before it failed: it goes into the same document as the failure."""


def print_json(value: Any) -> None:
    """Prints a value as one JSON document."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
