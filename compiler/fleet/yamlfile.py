"""Read YAML a stranger may have written: YAML 1.2 core values with their lines, in bounded time and memory.

Only what a hardware description needs is read: one document of mappings with text keys, lists, text, integers,
floats, booleans and null. Anchors, aliases, tags, directives and repeated keys are refused where they stand.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from compiler.errors import UsageError

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
KeyPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 1 << 20  # read in about 2 s; the largest profile of ours is 4 KiB
MAX_VALUES = 50_000  # a fleet of a thousand device classes has 10,000
MAX_DEPTH = 16  # a fleet file needs 4

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.+*/-]{1,64}")


@dataclass(frozen=True)
class Origin:
    """Where a value was written: its file, and the line (from 1) of every key in it."""

    path: str = ""
    lines: Mapping[KeyPath, int] = field(default_factory=dict, repr=False)

    def place(self, keys: KeyPath) -> str:
        """`file:line key.path` of a key; a key that is not there takes the line it is missing below."""
        depth = next((n for n in range(len(keys), -1, -1) if keys[:n] in self.lines), None)
        line = "" if depth is None else f":{self.lines[keys[:depth]]}"
        return f"{self.path}{line} {dotted(keys)}".strip()


@dataclass(frozen=True)
class Document:
    """The top-level mapping of one file, and where its parts were written."""

    data: dict[str, Value]
    origin: Origin


def dotted(keys: KeyPath) -> str:
    """A key path as people write it: `devices.kiosk.batch`, `cpu.isa[3]`."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{_shown(key)}" for key in keys]
    return "".join(parts).removeprefix(".")


def _shown(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else repr(key[:64])


def read_yaml(path: Path, *, error: type[UsageError]) -> Document:
    """The one mapping written in a YAML file.

    Args:
        path: A regular file of at most `MAX_BYTES`.
        error: The class to raise, so that a profile's faults are told from a fleet's.

    Raises:
        UsageError: As `error`, with file and line: not a readable UTF-8 file, too large, not YAML, or not the
            part of YAML this module reads.
    """
    reader = _Reader(str(path), error)
    return reader.document(_read_text(path, error))


def parse_yaml(text: str, *, name: str, error: type[UsageError]) -> Document:
    """Like `read_yaml`, of text already in memory; `name` stands for the file in messages."""
    return _Reader(name, error).document(text)


def _read_text(path: Path, error: type[UsageError]) -> str:
    place = str(path) if str(path).isprintable() else repr(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise error("is a folder or a device, not a file", where=place)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path itself
        raise error(f"cannot be read: {getattr(reason, 'strerror', None) or reason}", where=place) from reason
    if len(raw) > MAX_BYTES:
        raise error(f"is larger than {MAX_BYTES} bytes, the most that is read", where=place)
    if (at := raw.find(b"\0")) >= 0:
        raise error("holds NUL bytes: not a text file", where=f"{place}:{_line(raw, at)}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error("is not UTF-8 text", where=f"{place}:{_line(raw, reason.start)}") from reason


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


class _Reader:
    """Builds values from ruamel's event stream, noting the line of every key on the way."""

    def __init__(self, path: str, error: type[UsageError]) -> None:
        self.path, self.error = path, error
        self.lines: dict[KeyPath, int] = {(): 1}
        self.events: Iterator[Any] = iter(())
        self.values = 0

    def document(self, text: str) -> Document:
        if not text.strip():
            raise self.error("is empty", where=self.path)
        self.events = YAML(typ="safe", pure=True).parse(text)
        try:
            data = self._top()
        except MarkedYAMLError as reason:
            raise self._not_yaml(reason) from reason
        except (YAMLError, ValueError, OverflowError) as reason:  # the last two: ruamel, on "\UFFFFFFFF" and the like
            raise self.error(f"is not YAML: {str(reason).splitlines()[0][:200]}", where=self.path) from reason
        return Document(data, Origin(self.path, self.lines))

    def _top(self) -> dict[str, Value]:
        next(self.events)
        start = next(self.events)
        if isinstance(start, StreamEndEvent):
            raise self.error("holds comments only", where=self.path)
        if isinstance(start, DocumentStartEvent) and (start.version or start.tags):
            raise self._fault(start, (), "YAML directives (%) are not read")
        data = self._value(next(self.events), ())
        next(self.events)
        if not isinstance(extra := next(self.events), StreamEndEvent):
            raise self._fault(extra, (), "a second document (---) starts here; write one file per document")
        if not isinstance(data, dict):
            raise self.error("expected a mapping (`key: value` lines) at the top level", where=f"{self.path}:1")
        return data

    def _value(self, event: Any, keys: KeyPath) -> Value:
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise self._fault(event, keys, "YAML anchors and aliases are not read; write the value out")
        if event.tag not in (None, "!"):
            raise self._fault(event, keys, f"YAML tags are not read: {str(event.tag)[:64]!r}")
        if len(keys) > MAX_DEPTH:
            raise self._fault(event, (), f"nested more than {MAX_DEPTH} deep")
        self.values += 1
        if self.values > MAX_VALUES:
            raise self._fault(event, (), f"holds more than {MAX_VALUES} keys and values")
        if isinstance(event, MappingStartEvent):
            return self._mapping(keys)
        if isinstance(event, SequenceStartEvent):
            return self._list(keys)
        return self._scalar(event, keys)

    def _mapping(self, keys: KeyPath) -> dict[str, Value]:
        values: dict[str, Value] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self._value(event, keys) if isinstance(event, ScalarEvent) else None
            if not isinstance(key, str):
                raise self._fault(event, keys, "expected a text key; put quotes around it")
            here = (*keys, key)
            if key in values:
                raise self._fault(event, here, f"repeated key; it stands already in line {self.lines[here]}")
            self.lines[here] = event.start_mark.line + 1
            values[key] = self._value(next(self.events), here)
        return values

    def _list(self, keys: KeyPath) -> list[Value]:
        values: list[Value] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            here = (*keys, len(values))
            self.lines[here] = event.start_mark.line + 1
            values.append(self._value(event, here))
        return values

    def _scalar(self, event: Any, keys: KeyPath) -> Value:
        text = str(event.value)
        if not event.implicit[0]:
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise self._fault(event, keys, "half of a surrogate pair is not a character")
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INTEGER.fullmatch(text):
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if _FLOAT.fullmatch(text) and abs(number := float(text)) != float("inf"):
            return number
        return text

    def _fault(self, event: Any, keys: KeyPath, what: str) -> UsageError:
        line = event.start_mark.line + 1
        return self.error(what, where=f"{self.path}:{line} {dotted(keys)}".strip())

    def _not_yaml(self, reason: MarkedYAMLError) -> UsageError:
        mark = reason.problem_mark or reason.context_mark
        place = f"{self.path}:{mark.line + 1}" if mark else self.path
        remedy = "YAML indents with spaces, never with tabs." if "'\\t'" in str(reason.problem) else ""
        return self.error(f"is not YAML: {reason.problem or reason.context}", where=place, remedy=remedy)
