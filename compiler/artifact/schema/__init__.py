"""What of manifests, measurements and `build.json` is read again after delivery, as types: files that anybody may edit.

The types are strict in what is read again and deaf to the rest: a key they do not name is nobody's concern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from compiler.artifact.schema.artifact import (
    UNMEASURED,
    Artifact,
    Border,
    Counts,
    Curve,
    File,
    Inputs,
    Kernel,
    Measurements,
    Parity,
    Pass,
    Verdict,
)
from compiler.artifact.schema.pruning import Pruning
from compiler.artifact.schema.search import (
    Accuracy,
    Choice,
    Decision,
    Footprint,
    Gate,
    Layer,
    Limits,
    Plan,
    Searched,
    Trial,
)

__all__ = [
    "UNMEASURED",
    "Accuracy",
    "Artifact",
    "Choice",
    "Counts",
    "Curve",
    "Decision",
    "Failure",
    "Footprint",
    "Gate",
    "Kernel",
    "Layer",
    "Limits",
    "Manifest",
    "Measurements",
    "Parity",
    "Pass",
    "Plan",
    "Pruning",
    "Row",
    "Searched",
    "Summary",
    "Trial",
    "Verdict",
    "parse",
    "problems_of",
]

T = TypeVar("T")

MAX_PROBLEMS = 5
"""Problems shown of a file that does not fit: more would say nothing new."""


@dataclass(frozen=True)
class Manifest(Searched):
    """The manifest of a delivered device."""

    device: str = field(kw_only=True)
    fleetc: str = field(kw_only=True)
    inputs: Inputs = field(kw_only=True)
    source: Counts = field(kw_only=True)
    border: Border = field(kw_only=True)
    passes: tuple[Pass, ...] = field(kw_only=True)
    verdict: Verdict = field(kw_only=True)
    artifact: Artifact = field(kw_only=True)
    files: Mapping[str, File] = field(kw_only=True)
    tuning: tuple[Kernel, ...] = field(default=(), kw_only=True)
    pruning: Pruning | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Failure:
    """Why a device was not delivered."""

    error: str
    exit_code: int
    what: str
    where: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Row:
    """What `build.json` says of one device."""

    status: Literal["delivered", "deferred", "finished", "failed"]
    manifest: str = ""
    error: Failure | None = None
    report: Searched | None = None


@dataclass(frozen=True)
class Summary:
    """`build.json`."""

    fleet: str
    fleetc: str
    model: str
    devices: Mapping[str, Row]


def parse(cls: type[T], value: Mapping[str, Any]) -> T:
    """A value as one of the types above.

    Raises:
        ValueError: It does not fit; the message names the first few keys.
    """
    try:
        found: T = _adapter(cls).validate_python(value)  # type: ignore[arg-type]  # mypy: not every metaclass hashes
    except ValidationError as error:
        raise ValueError("; ".join(_problems(error))) from error
    return found


def problems_of(cls: type[Any], value: Mapping[str, Any]) -> list[str]:
    """What a value lacks or misspells to be one of the types above, by dotted key; empty if nothing."""
    try:
        _adapter(cls).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        return _problems(error)
    return []


def _problems(error: ValidationError) -> list[str]:
    found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
    return found[:MAX_PROBLEMS] + ([f"and {len(found) - MAX_PROBLEMS} more"] if len(found) > MAX_PROBLEMS else [])


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
