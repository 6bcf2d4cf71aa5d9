"""Turn the mapping of a file into a frozen dataclass, or tell everything that is wrong with it at once.

The dataclass is the only source: its annotations say types and ranges, its `Field` descriptions say units, and the
JSON schema derived from it says which keys exist. Types are strict: a number in quotes is text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from compiler.errors import UsageError
from compiler.fleet.yamlfile import KeyPath, Origin

T = TypeVar("T")
E = TypeVar("E", bound=UsageError)

MAX_PROBLEMS = 50  # beyond it a file is of another kind, and the list is no help

_UNITS = {
    "mib": "MiB",
    "kib": "KiB",
    "mhz": "MHz",
    "gbps": "GB/s",
    "w": "watts",
    "ms": "milliseconds",
    "pct": "percent",
}
_NOUNS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "dataclass_type": "a mapping",
    "model_type": "a mapping",
}
_UNKNOWN_KEY = {"unexpected_keyword_argument", "extra_forbidden"}


def validate(
    cls: type[T], data: Mapping[str, object], *, origin: Origin, error: type[E], under: KeyPath = ()
) -> tuple[T | None, list[E]]:
    """The value a mapping describes, or None with every reason why it describes none.

    Args:
        cls: A frozen dataclass; its fields may be annotated with pydantic's `Field`.
        data: JSON-like values only.
        origin: Where `data` was written.
        error: The class of the returned problems, at most `MAX_PROBLEMS` of them.
        under: The key path of `data` inside its file.
    """
    adapter = _adapter(cls)  # type: ignore[arg-type]  # mypy: not every metaclass hashes
    try:
        return adapter.validate_json(json.dumps(data), strict=True, extra="forbid"), []
    except ValidationError as reason:
        schema, errors = adapter.json_schema(), reason.errors(include_url=False)
    problems = []
    for item in errors[:MAX_PROBLEMS]:
        at = tuple(key for key in item["loc"] if key != "[key]")
        problems.append(error(_text(item, at, schema), where=origin.place((*under, *at))))
    return None, problems


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a dataclass, as `validate` reads it: unknown keys are refused."""
    schema = _adapter(cls).json_schema()  # type: ignore[arg-type]
    _close(schema)
    return schema


def _close(node: Any) -> None:
    """Refuse unknown keys everywhere, and drop the titles pydantic makes of key names."""
    if isinstance(node, list):
        for item in node:
            _close(item)
    elif isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        if "properties" in node or "patternProperties" in node:
            node["additionalProperties"] = False
        for item in node.values():
            _close(item)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to a mistyped one, else the known words themselves."""
    names = list(islice(known, 100))
    close = difflib.get_close_matches(word[:64], names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def _text(item: ErrorDetails, at: KeyPath, schema: dict[str, Any]) -> str:
    kind, shown = item["type"], _shown(item["input"])
    if kind in _UNKNOWN_KEY:
        return f"unknown key{nearest(str(at[-1]), _keys_at(schema, at[:-1]))}"
    if kind == "missing":
        return "is required and missing"
    if kind in _NOUNS:
        return f"expected {_NOUNS[kind]}{_unit(at, kind)}, got {shown}"
    if kind == "too_short":
        return "is empty"
    if kind == "value_error":
        return f"{item['ctx']['error']}, got {shown}"
    if kind == "literal_error":
        return f"expected {item['ctx']['expected']}, got {shown}"
    return f"{item['msg'].replace('Input should be', 'must be').replace('String should', 'must')}, got {shown}"


def _shown(value: object) -> str:
    text = json.dumps(value) if isinstance(value, (bool, dict, list, type(None))) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unit(at: KeyPath, kind: str) -> str:
    names = [key for key in at if isinstance(key, str)]
    unit = _UNITS.get(names[-1].rsplit("_", 1)[-1], "") if names and "_" in names[-1] else ""
    if not unit or kind not in ("int_type", "int_from_float", "float_type"):
        return ""
    return f" of {unit}" if kind == "float_type" else f" number of {unit}"


def _keys_at(schema: dict[str, Any], at: KeyPath) -> list[str]:
    """The keys a schema knows at a key path."""
    nodes = list(_alternatives(schema, schema))
    for key in at:
        below = [child for node in nodes for child in _children(node, key)]
        nodes = [option for child in below for option in _alternatives(child, schema)]
    return [name for node in nodes for name in node.get("properties", {})]


def _alternatives(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plain nodes behind references and unions."""
    if "$ref" in node:
        yield from _alternatives(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    for option in node.get("anyOf", ()):
        yield from _alternatives(option, schema)
    yield node


def _children(node: dict[str, Any], key: str | int) -> Iterator[dict[str, Any]]:
    if isinstance(key, str) and key in node.get("properties", {}):
        yield node["properties"][key]
    elif isinstance(key, int):
        yield from (node[name] for name in ("items",) if isinstance(node.get(name), dict))
    else:
        yield from node.get("patternProperties", {}).values()
        if isinstance(node.get("additionalProperties"), dict):
            yield node["additionalProperties"]
