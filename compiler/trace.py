"""From an operator of an artifact back to the source model: passes keep the origin of every node they make."""

from __future__ import annotations

import difflib
from pathlib import Path

import onnx_ir as ir

from compiler.capability import op_key
from compiler.errors import UsageError
from compiler.manifest import border_of
from compiler.passes.values import origins_of


def find_node(folder: Path, name: str) -> list[dict[str, str]]:
    """The border model's nodes that are named so, or were made of the source node of that name.

    Raises:
        UsageError: No node has that name or origin; the nearest names are told.
    """
    nodes = list(ir.load(border_of(folder)).graph.all_nodes())
    found = [node for node in nodes if name == node.name or name in origins_of(node)]
    if not found:
        known = {*(str(node.name) for node in nodes), *(origin for node in nodes for origin in origins_of(node))}
        near = difflib.get_close_matches(name, known, n=3)
        raise UsageError(
            f"no operator is named '{name}' or was made of it; a pass may have removed it",
            where=str(folder),
            remedy=f"Near names: {', '.join(near)}." if near else "`fleetc inspect` lists what each pass did.",
        )
    return [{"node": str(node.name), "op": op_key(node), "origin": ", ".join(origins_of(node))} for node in found]
