"""unroll-loops: a Loop whose number of trips is a small constant becomes its body, once per trip.

    Loop(n, true, v₀; body)  →  v₁ = body(0, v₀), v₂ = body(1, v₁), …

Scan outputs are joined along a new first axis. Only for targets that have no Loop. The body must not end the loop by
itself: its condition is true, or what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.model.graph import PassResult
from compiler.model.numerics import Array
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.remove_dead_nodes import remove_dead_nodes
from compiler.passes.take_branches import release
from compiler.passes.values import Names, display_name, graphs_of, record_origin, scalar_of

MAX_TRIPS = 16
MAX_NODES = 1024
"""Nodes that one Loop may become: what a build can still compile in a few times its usual time."""

AXES_AS_INPUT = 13
"""Opset from which on Unsqueeze takes its axes as an input."""


@dataclass(frozen=True)
class UnrollLoops:
    """The pass.

    Args:
        refuses: Whether the target lacks a node's operator.
    """

    refuses: Callable[[ir.Node], bool]
    name: str = "unroll-loops"

    def __call__(self, model: ir.Model) -> PassResult:
        """Unrolls in the main graph and in subgraphs; notes name the loops that stay, with the reason."""
        names, notes, modified = Names(model), list[str](), False
        for graph in list(graphs_of(model)):
            for node in list(graph):
                if node.op_type != "Loop" or node.domain != "" or node.graph is not graph or not self.refuses(node):
                    continue
                reason = _reason(node)
                if reason:
                    notes.append(f"{display_name(node)}: the Loop is not unrolled: {reason}")
                    continue
                _unroll(graph, node, names, model.graph.opset_imports.get("", AXES_AS_INPUT))
                modified = True
        if modified:
            infer_shapes(model)
            FOLD_CONSTANTS(model)
            remove_dead_nodes(model)
            infer_shapes(model)
        return PassResult(modified, tuple(notes))


def _reason(node: ir.Node) -> str:
    """Why a Loop cannot be unrolled; empty where it can."""
    body = node.attributes["body"].as_graph()
    trips = scalar_of(node.inputs[0])
    if trips is None:
        return "its number of trips is not constant"
    if trips > MAX_TRIPS or trips * len(body) > MAX_NODES:
        return f"{trips:g} trips of {len(body)} nodes are more than {MAX_TRIPS} trips or {MAX_NODES} nodes"
    condition = node.inputs[1]
    if condition is not None and scalar_of(condition) != 1:
        return "its condition is not constant"
    given, last = body.inputs[1], body.outputs[0]
    source = last.producer()
    while source is not None and source.op_type == "Identity" and source.inputs[0] is not None:
        last = source.inputs[0]
        source = last.producer()
    if last is not given and scalar_of(last) != 1:
        return "its body decides when it ends"
    carried = len(body.inputs) - 2
    if trips < 1 and len(node.outputs) > carried:
        return "it has no trip, and gives outputs of each trip"
    return ""


def _unroll(graph: ir.Graph, node: ir.Node, names: Names, opset: int) -> None:
    body = node.attributes["body"].as_graph()
    carried: list[ir.Value | None] = list(node.inputs[2:])
    scans: list[list[ir.Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
    for trip in range(int(scalar_of(node.inputs[0]) or 0)):
        outputs = _one_trip(graph, node, body, trip, carried, names)
        carried = list(outputs[: len(carried)])
        for values, value in zip(scans, outputs[len(carried) :], strict=True):
            values.append(value)
    results = [*carried, *(_joined(graph, node, values, names, opset) for values in scans)]
    for old, new in zip(node.outputs, results, strict=True):
        if new is not None:
            _hand_over(graph, node, old, new, names)
    release(body)
    graph.remove(node, safe=True)


def _one_trip(
    graph: ir.Graph, node: ir.Node, body: ir.Graph, trip: int, carried: list[ir.Value | None], names: Names
) -> list[ir.Value]:
    """Puts a copy of the body in front of the Loop; its outputs but for the condition."""
    copy = body.clone(allow_outer_scope_values=True)
    number = _constant(graph, names.fresh(f"{display_name(node)}.trip_{trip}"), np.array(trip, np.int64))
    true = _constant(graph, names.fresh(f"{display_name(node)}.condition_{trip}"), np.array(True))
    sources = dict(zip(copy.inputs, [number, true, *carried], strict=True))
    outputs = list(copy.outputs)[1:]
    copy.outputs.clear()
    for inner, source in sources.items():
        if source is not None:
            inner.replace_all_uses_with(source)
    moved = list(copy)
    copy.remove(moved)
    for value in list(copy.initializers.values()):
        del copy.initializers[str(value.name)]
        value.name = names.fresh(str(value.name))
        graph.register_initializer(value)
    for step in moved:
        step.name = names.fresh(f"{display_name(node)}.{step.name or step.op_type}")
        record_origin(step, [node])
        for value in step.outputs:
            value.name = names.fresh(str(value.name)) if value.name else ""
    graph.insert_before(node, moved)
    results = [sources.get(value, value) for value in outputs]
    return [value for value in results if value is not None]


def _joined(graph: ir.Graph, node: ir.Node, values: list[ir.Value], names: Names, opset: int) -> ir.Value:
    """The outputs of all trips along a new first axis."""
    wanted = names.fresh(f"{display_name(node)}.axis") if opset >= AXES_AS_INPUT else ""
    axes = _constant(graph, wanted, np.array([0], np.int64)) if wanted else None
    steps = [
        ir.node("Unsqueeze", [value, axes]) if axes is not None else ir.node("Unsqueeze", [value], {"axes": [0]})
        for value in values
    ]
    join = ir.node("Concat", [step.outputs[0] for step in steps], {"axis": 0})
    for step in (*steps, join):
        step.name = names.fresh(f"{display_name(node)}.{step.op_type}")
        step.outputs[0].name = names.fresh(f"{step.name}_output")
        record_origin(step, [node])
    graph.insert_before(node, [*steps, join])
    return join.outputs[0]


def _hand_over(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value, names: Names) -> None:
    """Lets readers read the last trip's value, behind an Identity that carries the name where it is a graph output."""
    if old.is_graph_output():
        identity = ir.node("Identity", [new], name=names.fresh(f"{display_name(node)}.Identity"))
        record_origin(identity, [node])
        graph.insert_before(node, [identity])
        result = identity.outputs[0]
        result.type, result.shape = old.type, old.shape
        old.name, result.name = None, old.name
        new = result
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
    value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
