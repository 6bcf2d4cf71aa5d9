"""What one call of the command prints: its result on stdout, as one JSON document or as text; the rest on stderr."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import click

from compiler.cli.progress import Reporter
from compiler.driver.events import Level, Note, Sink, ignore


@dataclass
class Session:
    """One call of the command.

    Args:
        as_json: Whether its result is one JSON document.
        as_events: Whether all that goes to stderr is JSON, an event per line.
        reporter: Shows the events; None until the command line is read.
        partial: What the command has found out so far: if it fails, that goes into the same document as the failure.
    """

    as_json: bool = False
    as_events: bool = False
    reporter: Reporter | None = None
    partial: dict[str, Any] = field(default_factory=dict)

    @property
    def sink(self) -> Sink:
        """Who is told of the driver's events."""
        return self.reporter.tell if self.reporter is not None else ignore

    def tell(self, text: str, level: Level = Level.INFO) -> None:
        """Says something on stderr beside the events."""
        self.sink(Note("", text, level)) if self.as_events else click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Prints a value as one JSON document."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
