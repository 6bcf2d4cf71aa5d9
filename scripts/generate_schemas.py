"""Write the JSON schemas, the OpenAPI file of the build server, and the tables of docs/profiles.md and docs/fleet.md.

python scripts/generate_schemas.py           write what has changed
python scripts/generate_schemas.py --check   write nothing; exit with 1 when something is stale
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compiler.driver.events import events_schema
from compiler.fleet import FleetFile
from compiler.fleet.profile import HardwareProfile
from compiler.fleet.validate import json_schema
from compiler.target import find_target

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- written by scripts/generate_schemas.py: begin -->\n"
END = "<!-- written by scripts/generate_schemas.py: end -->\n"
TARGETS = ("onnxruntime", "openvino", "reference", "tensorrt", "tvm")
KINDS = {
    "profile": (HardwareProfile, "docs/profiles.md", "fleetc hardware profile"),
    "fleet": (FleetFile, "docs/fleet.md", "fleetc fleet"),
}


def main() -> int:
    """Write or check every generated file; 1 when a checked file is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when something is stale")
    stale = [file for file, text in _generated() if not file.exists() or file.read_text("utf-8") != text]
    check = parser.parse_args().check
    for file, text in _generated():
        if file in stale:
            print(f"{'stale' if check else 'written'}: {file.relative_to(ROOT)}")
            if not check:
                file.write_text(text, "utf-8")
    return 1 if check and stale else 0


def _generated() -> Iterator[tuple[Path, str]]:
    for kind, (cls, page, title) in KINDS.items():
        schema = json_schema(cls)
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
        yield ROOT / f"profiles/{kind}.schema.json", json.dumps(head | schema, indent=2, ensure_ascii=False) + "\n"
        text = (ROOT / page).read_text("utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        options = _target_options() if kind == "profile" else ""
        yield ROOT / page, before + BEGIN + "\n" + _table(schema) + options + "\n" + END + after
    events = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fleetc event"} | events_schema()
    yield ROOT / "docs/openapi.json", _openapi()
    yield ROOT / "docs/events.schema.json", json.dumps(events, indent=2, ensure_ascii=False) + "\n"


def _openapi() -> str:
    """The build server's API, whose routes are imported here alone: the other files need no extra `server`."""
    from server.api.app import make_app

    return json.dumps(make_app(None, version=version("fleetc")).openapi(), indent=1, ensure_ascii=False) + "\n"


def _target_options() -> str:
    """The keys of `target_options`, target by target."""
    found = {name: json_schema(find_target(name).Options) for name in TARGETS}
    tables = [
        f"\n### target_options of {name}\n\n" + (_table(schema) if schema.get("properties") else "It takes none.\n")
        for name, schema in found.items()
    ]
    return "".join(tables)


def _table(schema: dict[str, Any]) -> str:
    rows = "".join(f"| `{key}` | {kind} | {text} |\n" for key, kind, text in _rows(schema, schema, ""))
    return "| key | type | meaning |\n|---|---|---|\n" + rows


def _rows(node: dict[str, Any], schema: dict[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    for key, child in node.get("properties", {}).items():
        needed = ", required" if key in node.get("required", ()) else ""
        yield f"{above}{key}", _type(child, schema) + needed, child.get("description", "")
        for option in _options(child, schema):
            yield from _rows(option, schema, f"{above}{key}.")
            for value in option.get("patternProperties", {}).values():
                for inner in _options(value, schema):
                    yield from _rows(inner, schema, f"{above}{key}.NAME.")


def _options(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a node, references followed, null left out."""
    if "$ref" in node:
        return _options(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    if "anyOf" in node:
        return [option for one in node["anyOf"] for option in _options(one, schema)]
    return [] if node.get("type") == "null" else [node]


def _type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    return " or ".join(_one_type(option, schema) for option in _options(node, schema))


def _one_type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])} {_type(node['prefixItems'][0], schema)}s"
    if node["type"] == "array":
        return f"list of {_type(node['items'], schema)}"
    if set(node.get("properties", ())) == {"min", "opt", "max"}:
        return "{min, opt, max}"
    return {"string": "text", "object": "mapping"}.get(node["type"], str(node["type"]))


if __name__ == "__main__":
    sys.exit(main())
