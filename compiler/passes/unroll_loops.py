"""unroll-loops: a Loop or Scan whose number of iterations is known becomes the nodes of all its iterations.

    Loop(n, true, v₀; body)  →  v₁ = body(0, v₀), v₂ = body(1, v₁), …

1. Loop: the trip count is a constant, or the condition can be computed from constants and the iteration's number.
2. Scan: the length of the scanned axis is fixed.
States of one iteration are read by the next; what is scanned is cut out by Gather, what is collected is joined by
Concat. Inner loops come first. Left alone: a loop that collects results and has no iteration, and one that would become
more than `MAX_NODES` nodes. What the numbers of iterations make constant is folded afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.model.graph import PassResult, add_constant
from compiler.model.numerics import Array
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.merge_duplicates import MERGE_DUPLICATES
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES
from compiler.passes.remove_identities import REMOVE_IDENTITIES
from compiler.passes.take_branches import release
from compiler.passes.values import Names, display_name, graphs_of, record_origin

MAX_NODES = 4096
"""Nodes that one loop may become: the code of a kernel each, and a minute of compilation."""
_FOLLOWING = (INFER_SHAPES, FOLD_CONSTANTS, REMOVE_IDENTITIES, MERGE_DUPLICATES, REMOVE_DEAD_NODES, INFER_SHAPES)
"""What a graph with unrolled loops goes through again."""
_AXES_AS_INPUT = 13
"""Opset from which Unsqueeze has its axes as an input."""
_SCAN_WITHOUT_BATCH = 9
"""Opset from which Scan has no batch axis of its own."""


def _every_loop(_: ir.Node) -> bool:
    return True


@dataclass(frozen=True)
class UnrollLoops:
    """The pass.

    Args:
        refuses: Whether the target lacks a node's operator; every Loop and Scan is unrolled if it is not said.
    """

    refuses: Callable[[ir.Node], bool] = _every_loop
    name: str = "unroll-loops"

    def __call__(self, model: ir.Model) -> PassResult:
        """Unrolls loops of the main graph and, before them, of subgraphs; notes say which stay, and why."""
        notes: list[str] = []
        opset = model.graph.opset_imports.get("", 1)
        names, modified = Names(model), False
        for graph in reversed(list(graphs_of(model))):  # of nested graphs the inner ones are listed later
            for node in list(graph):
                kind = _KINDS.get(node.op_type) if node.domain == "" else None
                if kind is None or not self.refuses(node):
                    continue
                reason = kind(node, opset, names).unroll()
                modified |= not reason
                notes += [f"{display_name(node)}: the {node.op_type} is not unrolled: {reason}"] if reason else []
        if modified:
            for step in _FOLLOWING:
                step(model)
        return PassResult(modified, tuple(notes))


class _Loop:
    """A Loop while it is unrolled."""

    def __init__(self, node: ir.Node, opset: int, names: Names) -> None:
        self.node, self.opset, self.names = node, opset, names
        self.label = display_name(node)
        self.body = node.attributes["body"].as_graph()
        self.body_size = sum(1 for _ in self.body.all_nodes())
        graph = node.graph
        assert isinstance(graph, ir.Graph), "a node of a graph"  # noqa: S101
        self.graph = graph
        self.made: list[ir.Node] = []
        self.added: list[ir.Value] = []
        self.constants: dict[str, ir.Value] = {}
        self.known: dict[ir.Value, Array | None] = {}

    def unroll(self) -> str:
        """Replaces the node by its iterations; why it does not, if it does not."""
        if any(value is None for value in self.node.inputs[2:]):
            return "a first state is left out"
        results = self._iterations()
        if isinstance(results, str):
            self._undo()
            return results
        for node in self.made:
            record_origin(node, [self.node])
        self.graph.insert_before(self.node, self.made)
        for old, new in zip(self.node.outputs, results, strict=True):
            self._replace(old, new)
        release(self.body)
        self.graph.remove(self.node, safe=True)
        return ""

    def _iterations(self) -> list[ir.Value] | str:
        """The values of the node's outputs; or why there are none."""
        trips, going = self._trips(), self._condition()
        if trips is None and self.node.inputs[0] is not None:
            return "its number of trips is not constant"
        if going is None:
            return "its condition is not constant"
        states: list[ir.Value | None] = [*self.node.inputs[2:]]
        collected: list[list[ir.Value]] = [[] for _ in self.body.outputs[1 + len(states) :]]
        step = 0
        while going and (trips is None or step < trips):
            if (step + 1) * self.body_size > MAX_NODES:
                return f"it would become more than {MAX_NODES} nodes"
            number, running = self._constant(np.array(step, np.int64)), self._constant(np.array(True))
            condition, *values = self._copy_body([number, running, *states])
            states = [*values[: len(states)]]
            for results, value in zip(collected, values[len(states) :], strict=True):
                results.append(self._unsqueezed(value, 0))
            known = self._evaluate(condition)
            if known is None and (trips is None or step + 1 < trips):
                return "its body decides when it ends"
            step, going = step + 1, known is None or bool(known)
        if collected and not step:
            return "it collects results and has no iteration"
        return [value for value in states if value is not None] + [self._joined(values, 0) for values in collected]

    def _trips(self) -> int | None:
        """The trip count; None where there is none, or it is known only at run time."""
        known = self._evaluate(self.node.inputs[0])
        return None if known is None else int(known)

    def _condition(self) -> bool | None:
        """The condition before the first iteration; None where it is known only at run time."""
        condition = self.node.inputs[1] if len(self.node.inputs) > 1 else None
        known = True if condition is None else self._evaluate(condition)
        return None if known is None else bool(known)

    def _copy_body(self, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
        """Copies the nodes of the body; gives the values of its outputs."""
        copy = self.body.clone(allow_outer_scope_values=True)
        sources = dict(zip(copy.inputs, inputs, strict=True))
        for name, value in [*copy.initializers.items()]:
            if value.const_value is not None and value not in sources:
                sources[value] = self._shared(name, value.const_value)
            del copy.initializers[name]
        outputs, nodes = [*copy.outputs], [*copy]
        copy.outputs.clear()  # of what is read by a graph no use can be replaced
        for inner, source in sources.items():
            if source is not None:
                inner.replace_all_uses_with(source)
        copy.remove(nodes)
        for node in nodes:
            node.name = self.names.fresh(f"{self.label}/{node.name or node.op_type}")
            for value in node.outputs:
                value.name = self.names.fresh(f"{self.label}/{value.name}") if value.name else ""
        self.made += nodes
        return [result for output in outputs if (result := sources.get(output, output)) is not None]

    def _evaluate(self, value: ir.Value | None) -> Array | None:
        """The scalar that a value is computed to be from constants alone; None where it is not, or not so simply."""
        if value is None:
            return None
        if value not in self.known:
            # stored: what one iteration computes of the one before would else be traced back to the first
            self.known[value] = self._computed(value)
        return self.known[value]

    def _computed(self, value: ir.Value) -> Array | None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and not value.is_graph_input():
            return tensor.numpy() if tensor.size == 1 else None
        node = value.producer()
        rule = _SCALARS.get(node.op_type) if node is not None and node.domain == "" else None
        if node is None or rule is None:
            return None
        arguments = [self._evaluate(source) for source in node.inputs[: 1 if node.op_type in _SAME else None]]
        return None if any(argument is None for argument in arguments) else np.asarray(rule(*arguments))

    def _shared(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A constant of the body as one of the graph around it, the same for all iterations."""
        if name not in self.constants:
            self.constants[name] = self._constant(tensor, name)
        return self.constants[name]

    def _constant(self, array: Array | ir.TensorProtocol, name: str = "index") -> ir.Value:
        value = add_constant(self.graph, self.names.fresh(f"{self.label}/{name}"), array)
        self.added.append(value)
        return value

    def _undo(self) -> None:
        """Leaves the graph as it was."""
        for node in self.made:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    release(attribute.as_graph())
        for value in self.added:
            del self.graph.initializers[str(value.name)]

    def _made(self, operator: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], like: str) -> ir.Value:
        node = ir.node(operator, list(inputs), dict(attributes), name=self.names.fresh(f"{self.label}/{operator}"))
        node.outputs[0].name, node.outputs[0].type = self.names.fresh(f"{self.label}/{like}"), inputs[0].type
        self.made.append(node)
        return node.outputs[0]

    def _unsqueezed(self, value: ir.Value, axis: int) -> ir.Value:
        if self.opset < _AXES_AS_INPUT:
            return self._made("Unsqueeze", [value], {"axes": [axis]}, str(value.name))
        axes = self._constant(np.array([axis], np.int64), "axes")
        return self._made("Unsqueeze", [value, axes], {}, str(value.name))

    def _joined(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        return self._made("Concat", values, {"axis": axis}, "collected")

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        if not old.is_graph_output():
            old.replace_all_uses_with(new)
            return
        # the outputs of a graph keep their names
        identity = ir.node("Identity", [new], name=self.names.fresh(f"{self.label}/Identity"))
        record_origin(identity, [self.node])
        self.graph.insert_before(self.node, [identity])
        name, old.name = old.name, self.names.fresh(f"{old.name}/old")
        result = identity.outputs[0]
        result.name, result.type, result.shape = name, old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)


class _Scan(_Loop):
    """A Scan while it is unrolled."""

    def _iterations(self) -> list[ir.Value] | str:
        if self.opset < _SCAN_WITHOUT_BATCH:
            return f"before opset {_SCAN_WITHOUT_BATCH} it has another definition"
        scanned = self.node.attributes["num_scan_inputs"].as_int()
        states, sources = [*self.node.inputs[:-scanned]], [*self.node.inputs[-scanned:]]
        axes = self._axes("scan_input_axes", sources)
        length = next((_size(value, axis) for value, axis in zip(sources, axes, strict=True)), None)
        if length is None:
            return "the length of the scanned axis is not fixed"
        if length == 0 or length * self.body_size > MAX_NODES:
            return f"it would become no node, or more than {MAX_NODES}"
        reverse = self.node.attributes.get_ints("scan_input_directions", [0] * scanned)
        collected: list[list[ir.Value]] = [[] for _ in self.body.outputs[len(states) :]]
        outputs = self._axes("scan_output_axes", collected)
        for step in range(length):
            places = [length - 1 - step if backwards else step for backwards in reverse]
            parts = [self._part(value, *at) for value, *at in zip(sources, axes, places, strict=True)]
            values = self._copy_body([*states, *parts])
            states = [*values[: len(states)]]
            for results, value, axis in zip(collected, values[len(states) :], outputs, strict=True):
                results.append(self._unsqueezed(value, axis))
        backwards = self.node.attributes.get_ints("scan_output_directions", [0] * len(collected))
        joined = [
            self._joined(values[::-1] if turned else values, axis)
            for values, axis, turned in zip(collected, outputs, backwards, strict=True)
        ]
        return [value for value in states if value is not None] + joined

    def _axes(self, name: str, of: Sequence[Any]) -> list[int]:
        return list(self.node.attributes.get_ints(name, [0] * len(of)))

    def _part(self, value: ir.Value | None, axis: int, place: int) -> ir.Value | None:
        """What one iteration sees of a scanned input."""
        if value is None:
            return None
        return self._made("Gather", [value, self._constant(np.array(place, np.int64))], {"axis": axis}, str(value.name))


_KINDS: Mapping[str, type[_Loop]] = {"Loop": _Loop, "Scan": _Scan}


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = value.shape[axis] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


_SAME = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that leave a scalar as it is; their other inputs are shapes and axes."""
_SCALARS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(_SAME, lambda x: x),
    "Add": np.add,
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Mul": np.multiply,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Sub": np.subtract,
}
