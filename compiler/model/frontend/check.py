"""Checks of a model before type inference: versions, operators, names, order; all problems at once."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx

from compiler.errors import InvalidModel, ModelError, UnsupportedModel
from compiler.model.frontend.tensors import subgraphs

OPSET_MIN = 7
"""Oldest version of the default domain that ONNX Runtime, the reference, runs."""

IR_VERSION_MIN = 3
"""The first that says which operator sets a model uses; nothing older can be interpreted."""

DEFAULT_DOMAINS = ("", "ai.onnx")
MAX_DEPTH = 24
"""Subgraphs inside subgraphs; models have three or four."""


@dataclass(frozen=True)
class Scope:
    """What the nodes of one graph or function may refer to.

    Args:
        opsets: Domain → version in force.
        functions: (domain, name) of every function the model brings.
        outer: Names visible from enclosing graphs.
        depth: How many graphs enclose this one.
    """

    opsets: Mapping[str, int]
    functions: frozenset[tuple[str, str]]
    outer: frozenset[str] = frozenset()
    depth: int = 0


def version_problems(proto: onnx.ModelProto) -> Iterator[ModelError]:
    """Problems of the IR version and of the operator sets the model imports."""
    if not proto.HasField("graph"):
        yield InvalidModel("the file holds no graph", remedy="It is no ONNX model, or it is damaged; export it again.")
    if proto.ir_version > onnx.IR_VERSION:
        yield UnsupportedModel(
            f"the model is of IR version {proto.ir_version}; the newest known here is {onnx.IR_VERSION}",
            remedy="Export it for an older IR version, or update fleetc.",
        )
    elif proto.ir_version < IR_VERSION_MIN:
        yield InvalidModel(
            f"the model is of IR version {proto.ir_version}; the oldest readable is {IR_VERSION_MIN}",
            remedy="Export it again with a current exporter.",
        )
    yield from _opset_problems(proto.opset_import)


def imported_opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain → version, the default domain spelled empty."""
    return {"" if item.domain in DEFAULT_DOMAINS else item.domain: item.version for item in imports}


def model_problems(proto: onnx.ModelProto) -> Iterator[ModelError]:
    """Problems of the graph, its subgraphs and the model's functions."""
    functions = frozenset((_domain(function.domain), function.name) for function in proto.functions)
    scope = Scope(imported_opsets(proto.opset_import), functions)
    if not proto.graph.output:
        yield InvalidModel("the graph has no outputs", remedy="Export the model with at least one output.")
    yield from _graph_problems(proto.graph, scope)
    for function in proto.functions:
        inner = Scope(imported_opsets(function.opset_import) or scope.opsets, functions)
        place = f"function '{function.domain}::{function.name}'"
        yield from _body_problems(function.node, list(function.input), list(function.output), inner, place)


def find_cycle(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes of one cycle, in the order the data takes; empty if there is none."""
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [sorted({producer[name] for name in _reads(node) if name in producer}) for node in nodes]
    waiting = [len(need) for need in needs]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, need in enumerate(needs):
        for source in need:
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    stuck = {index for index, count in enumerate(waiting) if count}
    return [nodes[index] for index in _walk_back(stuck, needs)]


def is_sorted(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether every node stands after those it reads from."""
    later = {name for node in nodes for name in node.output if name}
    for node in nodes:
        if any(name in later for name in _reads(node)):
            return False
        later.difference_update(node.output)
    return True


def place_of(node: onnx.NodeProto) -> str:
    """Operator and name of a node, for messages; a node without a name is named by its outputs."""
    return f"{node.op_type} '{node.name}'" if node.name else f"{node.op_type} (makes '{', '.join(node.output)}')"


def _walk_back(stuck: set[int], needs: Sequence[Sequence[int]]) -> list[int]:
    if not stuck:
        return []
    path = [min(stuck)]
    while True:
        path.append(next(source for source in needs[path[-1]] if source in stuck))
        if path[-1] in path[:-1]:
            return list(reversed(path[path.index(path[-1]) : -1]))


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those its subgraphs take from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in subgraphs(attribute):
            names |= _free_names(graph)
    return names


def _free_names(graph: onnx.GraphProto) -> set[str]:
    read = {item.name for item in graph.output}.union(*map(_reads, graph.node))
    return read - _declared(graph) - {name for node in graph.node for name in node.output}


def _declared(graph: onnx.GraphProto) -> set[str]:
    dense = {tensor.name for tensor in graph.initializer}
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    return {item.name for item in graph.input} | dense | sparse


def _opset_problems(imports: Sequence[onnx.OperatorSetIdProto]) -> Iterator[ModelError]:
    # tools that merge models import a domain once more in the same version, which says nothing new
    distinct = {("" if item.domain in DEFAULT_DOMAINS else item.domain, item.version) for item in imports}
    for domain, count in Counter(domain for domain, _ in sorted(distinct)).items():
        if count > 1:
            yield InvalidModel(f"the model imports the domain '{domain or 'ai.onnx'}' in {count} versions")
    if not imports:
        yield InvalidModel("the model does not say which operator sets it uses", remedy="Export it again.")
    for domain, version in imported_opsets(imports).items():
        newest = _newest_versions().get(domain)
        if newest is not None and version > newest:
            yield UnsupportedModel(
                f"the model uses opset {version} of '{domain or 'ai.onnx'}'; the newest known here is {newest}",
                remedy=f"Convert it: onnx.version_converter.convert_version(model, {newest}), or update fleetc.",
            )
        elif domain == "" and version < OPSET_MIN:
            yield UnsupportedModel(
                f"the model uses opset {version}; the oldest supported is {OPSET_MIN}",
                remedy="Convert it: onnx.version_converter.convert_version(model, 17), or export it again.",
            )


def _graph_problems(graph: onnx.GraphProto, scope: Scope) -> Iterator[ModelError]:
    inputs, outputs = [item.name for item in graph.input], [item.name for item in graph.output]
    where = f"graph '{graph.name}'" if scope.depth else ""
    weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    yield from _duplicates(inputs, "graph input", where)
    yield from _duplicates(weights, "initializer", where)
    if "" in weights:
        yield InvalidModel("an initializer has no name", where=where)
    yield from _body_problems(graph.node, [*inputs, *(set(weights) - set(inputs))], outputs, scope, where)


def _duplicates(names: Sequence[str], kind: str, where: str) -> Iterator[ModelError]:
    for name, count in Counter(names).items():
        if count > 1:
            yield InvalidModel(f"{kind} '{name}' is there {count} times", where=where)


def _body_problems(
    nodes: Sequence[onnx.NodeProto], sources: Sequence[str], outputs: Sequence[str], scope: Scope, where: str
) -> Iterator[ModelError]:
    yield from _definition_problems(nodes, sources, where)
    made = {name for node in nodes for name in node.output if name}
    visible = scope.outer | set(sources) | made
    for node in nodes:
        yield from _operator_problems(node, scope)
        yield from _input_problems(node, visible)
        yield from _subgraph_problems(node, scope, frozenset(visible))
    for name in outputs:
        if name not in visible:
            yield InvalidModel(f"output '{name}' is made by no node", where=where)
    cycle = find_cycle(nodes)
    if cycle:
        path = " → ".join(place_of(node) for node in [*cycle, cycle[0]])
        yield InvalidModel(f"the graph has a cycle: {path}", where=where, remedy="Export the model again.")


def _definition_problems(nodes: Sequence[onnx.NodeProto], sources: Sequence[str], where: str) -> Iterator[ModelError]:
    maker = dict.fromkeys(sources, "an input or initializer")
    for node in nodes:
        for name in filter(None, node.output):
            if name in maker:
                what = f"value '{name}' is made twice: by {maker[name]} and by {place_of(node)}"
                yield InvalidModel(what, where=where, remedy="Each value may be defined once.")
            maker[name] = place_of(node)


def _input_problems(node: onnx.NodeProto, visible: set[str] | frozenset[str]) -> Iterator[ModelError]:
    for index, name in enumerate(node.input):
        if name and name not in visible:
            near = difflib.get_close_matches(name, visible, n=1)
            yield InvalidModel(
                f"input {index} is '{name}', which nothing defines",
                where=place_of(node),
                remedy=f"The nearest name is '{near[0]}'." if near else "",
            )


def _subgraph_problems(node: onnx.NodeProto, scope: Scope, visible: frozenset[str]) -> Iterator[ModelError]:
    inner = Scope(scope.opsets, scope.functions, visible, scope.depth + 1)
    for attribute in node.attribute:
        for graph in subgraphs(attribute):
            if inner.depth > MAX_DEPTH:
                yield UnsupportedModel(f"graphs are nested more than {MAX_DEPTH} deep", where=place_of(node))
            else:
                yield from _graph_problems(graph, inner)


def _operator_problems(node: onnx.NodeProto, scope: Scope) -> Iterator[ModelError]:
    domain = _domain(node.domain)
    if (domain, node.op_type) in scope.functions:
        return
    if domain not in scope.opsets:
        what = f"its domain '{domain or 'ai.onnx'}' is not among those the model imports"
        yield InvalidModel(what, where=place_of(node), remedy="Add the domain to the model's opset_import.")
    elif domain in _newest_versions():
        yield from _schema_problems(node, domain, scope.opsets[domain])


def _schema_problems(node: onnx.NodeProto, domain: str, version: int) -> Iterator[ModelError]:
    since = _history().get((domain, node.op_type))
    if since is None:
        names = [name for owner, name in _history() if owner == domain]
        near = difflib.get_close_matches(node.op_type, names, n=1)
        yield InvalidModel(
            f"'{node.op_type}' is no operator of the domain '{domain or 'ai.onnx'}'",
            where=place_of(node),
            remedy=(f"Did you mean '{near[0]}'? " if near else "")
            + "A custom operator needs a domain of its own or a function.",
        )
    elif version < since:
        what = f"'{node.op_type}' came with opset {since}, the model uses opset {version}"
        yield InvalidModel(what, where=place_of(node), remedy=f"Export the model with opset {since} or newer.")
    else:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        if schema.deprecated:
            what = f"'{node.op_type}' is not in opset {version}: opset {schema.since_version} took it out"
            yield InvalidModel(what, where=place_of(node), remedy="Export the model with another opset.")


@cache
def _newest_versions() -> Mapping[str, int]:
    newest: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        newest[schema.domain] = max(newest.get(schema.domain, 0), schema.since_version)
    return {**newest, "": onnx.defs.onnx_opset_version()}


@cache
def _history() -> Mapping[tuple[str, str], int]:
    """(domain, operator) → the version it came with."""
    oldest: dict[tuple[str, str], int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key = schema.domain, schema.name
        oldest[key] = min(oldest.get(key, schema.since_version), schema.since_version)
    return oldest


def _domain(name: str) -> str:
    return "" if name in DEFAULT_DOMAINS else name
