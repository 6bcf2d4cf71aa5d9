"""What became of nodes that are no longer in the model; each pass is compared before and after.

A node that a pass makes lists its origins (values.py). A node that is gone and in no such list was
1. folded: what was computed of it is a constant now, or it was computed of constants alone
2. left out: its readers are as before, and read what it read instead
3. merged: its readers have changed, or what they read has, or another node computes its value
4. removed: no output depended on it
The entries are kept in the model's own metadata, so that they travel with the border model. Each names nodes that were
there after the pass; if those are gone later they have an entry of their own, so every chain ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import onnx_ir as ir

from compiler.passes.values import origins_of

REMOVED_KEY = "fleetc.provenance"  # of the first release: models that carry it are in stores and artifacts
"""Model metadata: name of a node that is gone → what became of it, as JSON."""

MOST_SUCCESSORS = 8
"""Nodes that one entry names: what a shape was computed for may be read by hundreds."""


@dataclass(frozen=True)
class RemovedNode:
    """What became of a node.

    Args:
        op: Its operator.
        how: What happened, in words.
        by: Number and name of the pass.
        successors: Source nodes whose part of the model took its place, reads its constant, or reads on without it.
    """

    op: str
    how: str
    by: str
    successors: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Known:
    """A node by names: its operator and attributes, the source nodes it stands for, the values it reads and makes."""

    op: str
    attributes: tuple[str, ...]
    origins: tuple[str, ...]
    inputs: frozenset[str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """A model by names, as far as it is compared; subgraphs are part of it.

    Args:
        nodes: Every node.
        makers: Value → the node that computes it.
        readers: Value → nodes that read it, and the node whose subgraph gives it back.
        constants: Names of initializers.
    """

    nodes: tuple[_Known, ...]
    makers: Mapping[str, _Known]
    readers: Mapping[str, tuple[_Known, ...]]
    constants: frozenset[str]


def look(model: ir.Model) -> Seen:
    """A snapshot of the model by names, to compare with a later one."""
    nodes, readers = [], dict[str, tuple[_Known, ...]]()
    makers: dict[str, _Known] = {}
    for node in model.graph.all_nodes():
        outputs = tuple(value.name for value in node.outputs if value.name)
        inputs = frozenset(value.name for value in node.inputs if value is not None and value.name)
        known = _Known(node.op_type, _attributes(node), origins_of(node), inputs, outputs)
        nodes.append(known)
        makers |= dict.fromkeys(outputs, known)
        for name in (*inputs, *_given_back(node)):
            readers[name] = (*readers.get(name, ()), known)
    graphs = (model.graph, *model.graph.subgraphs())
    return Seen(tuple(nodes), makers, readers, frozenset(name for graph in graphs for name in graph.initializers))


def find_removed(before: Seen, after: Seen, *, by: str) -> dict[str, RemovedNode]:
    """Name → what became of every source node that is missing in the second snapshot.

    Args:
        before: The model before a pass.
        after: The model after it.
        by: The pass.
    """
    alive = {name: node for node in after.nodes for name in node.origins}
    lost = [(name, node) for node in before.nodes for name in node.origins if name not in alive]
    return {name: _removed(node, before, after, alive, by) for name, node in lost}


def read_removed(model: ir.Model) -> dict[str, RemovedNode]:
    """The removed nodes that a model names; none where one from elsewhere has something else under that key."""
    try:
        recorded = json.loads(model.metadata_props.get(REMOVED_KEY, "{}"))
        return {
            name: RemovedNode(
                str(entry["op"]), str(entry["how"]), str(entry["by"]), tuple(map(str, entry["successors"]))
            )
            for name, entry in recorded.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def add_removed(model: ir.Model, entries: Mapping[str, RemovedNode]) -> None:
    """Adds removed nodes to the model's metadata; later entries replace those of the same name."""
    if entries:
        removed = {name: asdict(entry) for name, entry in {**read_removed(model), **entries}.items()}
        model.metadata_props[REMOVED_KEY] = json.dumps(removed, ensure_ascii=False)


def _attributes(node: ir.Node) -> tuple[str, ...]:
    """The attributes of an operator as text, without tensors and subgraphs."""
    kinds = (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    plain = [attribute for attribute in node.attributes.values() if attribute.type not in kinds]
    return tuple(sorted(f"{attribute.name}={attribute.value!r}" for attribute in plain))


def _given_back(node: ir.Node) -> Iterator[str]:
    """Outputs of the node's subgraphs: the node reads the nodes that compute them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield from (value.name for value in attribute.as_graph().outputs if value.name)


def _removed(node: _Known, before: Seen, after: Seen, alive: Mapping[str, _Known], by: str) -> RemovedNode:
    successors: list[str] = []
    changed: list[bool] = []
    above = _upstream(node, before, alive)
    for value, reader in _downstream(node, before, alive):
        if value in after.constants:
            readers = tuple(dict.fromkeys(name for reader in after.readers.get(value, ()) for name in reader.origins))
            return RemovedNode(node.op, f"folded into the constant '{value}'", by, readers[:MOST_SUCCESSORS])
        if value in after.makers:
            successors += after.makers[value].origins
        elif reader is not None:
            for name in (name for name in reader.origins if name in alive):
                takers, is_changed = _successors_of(reader, alive[name], before, after, above)
                successors += takers
                changed.append(is_changed)
    names = tuple(dict.fromkeys(successors))[:MOST_SUCCESSORS]
    if not names:
        return RemovedNode(node.op, "removed: no output depended on it", by)
    if above <= before.constants:
        return RemovedNode(node.op, "folded into a constant", by, names)
    if changed and not any(changed):
        return RemovedNode(node.op, "left out, as it changed nothing; what it read is read instead by", by, names)
    return RemovedNode(node.op, "merged", by, names)


def _successors_of(
    reader: _Known, now: _Known, before: Seen, after: Seen, above: frozenset[str]
) -> tuple[tuple[str, ...], bool]:
    """The nodes that replaced a lost node for one of its readers, and whether anything changed there.

    Args:
        reader: A reader of the node, or of a lost reader of it.
        now: The same after the pass.
        before: The model before.
        after: The model after.
        above: What the node was computed of.
    """
    gone, new = reader.inputs - now.inputs, now.inputs - reader.inputs
    if (reader.op, reader.attributes) != (now.op, now.attributes) or not len(gone) == len(new) == 1:
        return now.origins, True
    (value,) = new
    maker, was = after.makers.get(value), before.makers.get(value)
    if maker is not None and (was is None or _work(was) != _work(maker)):
        return maker.origins, True
    return now.origins, not new <= above


def _work(node: _Known) -> tuple[str, tuple[str, ...], frozenset[str]]:
    return node.op, node.attributes, node.inputs


def _upstream(node: _Known, before: Seen, alive: Mapping[str, _Known]) -> frozenset[str]:
    """Values that the node and the lost nodes in front of it were computed of; constants are among them."""
    queue, sources, done = list(node.inputs), set[str](), set[str]()
    while queue:
        value = queue.pop()
        maker = before.makers.get(value)
        if value in done:
            continue
        done.add(value)
        if maker is not None and not any(name in alive for name in maker.origins):
            queue += maker.inputs
        else:
            sources.add(value)
    return frozenset(sources)


def _downstream(node: _Known, before: Seen, alive: Mapping[str, _Known]) -> Iterator[tuple[str, _Known | None]]:
    """Values the node makes with their readers (None first), and those of readers that are lost too, nearest first."""
    queue, done = list(node.outputs), set[str]()
    while queue:
        value = queue.pop(0)
        if value in done:
            continue
        done.add(value)
        yield value, None
        for reader in before.readers.get(value, ()):
            yield value, reader
            if not any(name in alive for name in reader.origins):
                queue += reader.outputs
