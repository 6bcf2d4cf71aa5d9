"""From a node of the source model to what became of it in an artifact: operators, precision, kernel, and why."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.manifest import border_of
from compiler.artifact.schema import Layer, Manifest
from compiler.errors import UsageError
from compiler.passes.removed_nodes import RemovedNode, read_removed
from compiler.passes.values import origins_of
from compiler.target.capability import op_key


@dataclass(frozen=True)
class Trace:
    """What became of a node.

    Args:
        nodes: Operators of the border model that are named so, were made of it, or took its place.
        steps: What happened on the way, in words; empty where it is still there or fused.
    """

    nodes: tuple[ir.Node, ...]
    steps: tuple[str, ...]


def find_node(folder: Path, name: str, manifest: Manifest) -> dict[str, Any]:
    """What became of a source node, or of a node of the border model, as a JSON-ready value.

    Args:
        folder: The artifact's folder.
        name: The node's name.
        manifest: The artifact's, for precision, kernel and reasons.

    Returns:
        `node`: the name; `steps`: what happened to it; `operators`: what it is now, each with `node`, `op`, `origin`,
        `precision`, `why` and `kernel`.

    Raises:
        UsageError: There never was a node of that name; the nearest names are told.
    """
    model = ir.load(border_of(folder))
    trace = follow(model, name)
    if trace is None:
        near = difflib.get_close_matches(name, _known(model), n=3)
        raise UsageError(
            f"no operator is named '{name}', was made of it or took its place",
            where=str(folder),
            remedy=f"Near names: {', '.join(near)}." if near else "`fleetc inspect` lists what each pass did.",
        )
    layers = {layer.node: layer for layer in manifest.layers}
    operators = [_operator(node, layers.get(str(node.name)), manifest) for node in trace.nodes]
    return {"node": name, "steps": list(trace.steps), "operators": operators}


def follow(model: ir.Model, name: str) -> Trace | None:
    """Follows a name through what is told of nodes that are gone, to nodes that are there; None if nothing knows it."""
    holders: dict[str, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        for known in dict.fromkeys((str(node.name), *origins_of(node))):
            holders.setdefault(known, []).append(node)
    removed = read_removed(model)
    if name not in holders and name not in removed:
        return None
    nodes: dict[ir.Node, None] = {}
    steps: list[str] = []
    queue = [name]
    for known in queue:  # grows while it is read
        if known in holders:
            nodes |= dict.fromkeys(holders[known])
        elif known in removed:
            steps.append(_step(known, removed[known]))
            queue += [successor for successor in removed[known].successors if successor not in queue]
    return Trace(tuple(nodes), tuple(steps))


def _step(name: str, entry: RemovedNode) -> str:
    successors = ", ".join(f"'{successor}'" for successor in entry.successors)
    link = {"merged": " into ", "folded": ", read by "}.get(entry.how.split()[0], ": ")
    return f"{entry.op} '{name}' was {entry.how}{link + successors if successors else ''} (pass {entry.by})"


def _operator(node: ir.Node, layer: Layer | None, manifest: Manifest) -> dict[str, Any]:
    return {
        "node": str(node.name),
        "op": op_key(node),
        "origin": ", ".join(origins_of(node)),
        "precision": layer.precision if layer else manifest.artifact.precision,
        "why": layer.why if layer else "",
        "kernel": layer.kernel if layer else "",
    }


def _known(model: ir.Model) -> set[str]:
    nodes = list(model.graph.all_nodes())
    names = {*(str(node.name) for node in nodes), *(origin for node in nodes for origin in origins_of(node))}
    return names | set(read_removed(model))
