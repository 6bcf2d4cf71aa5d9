"""decompose-operators: what a target lacks is written out in operators that it has.

1. operators on integers: `decompose_quantized.py`; then uint8 between quantizers as int8, where the target has no
   uint8; then quantizers that it refuses all the same, as operators on floats
2. a rule of `decompositions.py`
3. the function body that ONNX gives the operator
A body may hold operators that the target lacks too; they are written out in turn. Each node is first written out in a
model of its own, with the types and shapes it has here, where sizes are folded; it is replaced only if the target takes
every operator that is left. Otherwise it stays, and the target refuses it by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from compiler.model.graph import PassResult
from compiler.passes.decompose_quantized import decompose_quantized
from compiler.passes.decompose_quantizers import decompose_quantizers
from compiler.passes.decompositions import RULES, Body
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.function_bodies import body_of, has_body
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.quantized import QUANTIZERS
from compiler.passes.remove_dead_nodes import remove_dead_nodes
from compiler.passes.remove_identities import remove_identities
from compiler.passes.shift_quantized import SHIFT_QUANTIZED
from compiler.passes.values import Names, constant_tensor, display_name, graphs_of, record_origin

DEPTH_MAX = 6
"""Bodies inside bodies: Attention is written out in four steps, nothing else in more than two."""

_DOMAIN, _NAME = "fleetc.body", "Body"
"""What a node is called while its body is put in its place; no model has this domain."""

Refuses = Callable[[ir.Node], bool]
"""Whether the target lacks a node's operator, or its attributes, or its types."""


@dataclass(frozen=True)
class DecomposeOperators:
    """The pass.

    Args:
        refuses: What the target says of a node.
    """

    refuses: Refuses
    name: str = "decompose-operators"

    def __call__(self, model: ir.Model) -> PassResult:
        """Writes out in the main graph and in subgraphs; notes name what is written out, and what cannot be."""
        integers = _without_integers(model, self.refuses)
        names, notes, modified = Names(model), list(integers.notes), integers.modified
        for graph in list(graphs_of(model)):
            for node in list(graph):
                if not may_decompose(node) or not self.refuses(node):
                    continue
                alone = _written_out(node, model, self.refuses)
                if alone is None:
                    continue
                _replace(graph, node, alone, names)
                notes.append(f"{display_name(node)}: {node.op_type} is written out in {len(alone.graph)} operators")
                modified = True
        if modified:
            infer_shapes(model)
        return PassResult(modified, tuple(notes))


def _without_integers(model: ir.Model, refuses: Refuses) -> PassResult:
    """Writes out what the target lacks of operators on integers, and shifts uint8 where it has int8 alone."""
    written = decompose_quantized(model, refuses)
    if written.modified:
        infer_shapes(model)
    steps = [written]
    quantizers = (node for node in model.graph if node.op_type in QUANTIZERS and node.domain == "" and refuses(node))
    if any(value is not None and value.dtype == ir.DataType.UINT8 for n in quantizers for value in _values_of(n)):
        steps.append(SHIFT_QUANTIZED(model))
    steps.append(decompose_quantizers(model, refuses))
    return PassResult(any(step.modified for step in steps), tuple(note for step in steps for note in step.notes))


def _values_of(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (*node.inputs, *node.outputs)


def may_decompose(node: ir.Node) -> bool:
    """Whether there is a body for the operator at all."""
    if node.domain != "":
        return False
    return node.op_type in RULES or has_body(node.op_type)


def _written_out(node: ir.Node, model: ir.Model, refuses: Refuses) -> ir.Model | None:
    """The node alone, its operators all taken by the target; None where there is no such form."""
    alone = _alone(node, model)
    for _ in range(DEPTH_MAX):
        _tidy(alone)
        left = [inner for graph in graphs_of(alone) for inner in graph if refuses(inner)]
        if not left:
            return alone
        if not all(_expand(inner, alone) for inner in left):
            return None
    return None


def _tidy(model: ir.Model) -> None:
    """Folds the sizes that bodies compute, which leaves operators on data alone."""
    infer_shapes(model)
    FOLD_CONSTANTS(model)
    remove_identities(model)
    remove_dead_nodes(model)
    infer_shapes(model)


def _alone(node: ir.Node, model: ir.Model) -> ir.Model:
    """A model of this node: its inputs are inputs or constants under their names; tensors are shared."""
    copies: dict[ir.Value, ir.Value] = {}
    for value in dict.fromkeys(value for value in node.inputs if value is not None):
        tensor = constant_tensor(value)
        shape = value.shape if tensor is None else ir.Shape(list(tensor.numpy().shape))
        kind = value.type if tensor is None else ir.TensorType(tensor.dtype)
        copies[value] = ir.Value(name=value.name, type=kind, shape=shape, const_value=tensor)
    inputs = [None if value is None else copies[value] for value in node.inputs]
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    twin = ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=display_name(node)
    )
    free = [copy for copy in copies.values() if copy.const_value is None]
    fixed = [copy for copy in copies.values() if copy.const_value is not None]
    graph = ir.Graph(
        free,
        [value for value in outputs if value.name],
        nodes=[twin],
        initializers=fixed,
        opset_imports=dict(model.graph.opset_imports),
        name="alone",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _expand(node: ir.Node, model: ir.Model) -> bool:
    """Puts the body in the node's place; False where there is none that means the same at the model's opset."""
    if not may_decompose(node):
        return False
    opset = model.graph.opset_imports[""]
    function = _own_body(node, opset) or body_of(node, opset)
    if function is None:
        return False
    function.domain, function.name = _DOMAIN, _NAME
    model.functions[(_DOMAIN, _NAME, "")] = ir.serde.deserialize_function(function)
    model.graph.opset_imports[_DOMAIN] = 1
    node.domain, node.op_type = _DOMAIN, _NAME
    common.InlinePass()(model)
    model.graph.opset_imports.pop(_DOMAIN, None)
    return True


def _own_body(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    rule = RULES.get(node.op_type)
    body = None if rule is None else rule(node, opset)
    return None if body is None else _parsed(body, opset, outputs=len(node.outputs))


def _parsed(body: Body, opset: int, *, outputs: int) -> onnx.FunctionProto:
    header = f'<domain: "{_DOMAIN}", opset_import: ["": {opset}]>'
    lines = "\n".join(body.lines)
    return onnx.parser.parse_function(
        f"{header}\n{_NAME} ({', '.join(body.inputs)}) => ({', '.join(body.outputs[:outputs])})\n{{\n{lines}\n}}"
    )


def _replace(graph: ir.Graph, node: ir.Node, alone: ir.Model, names: Names) -> None:
    """Moves the operators written out into the graph, under names of their own."""
    values = {str(value.name): value for value in node.inputs if value is not None}
    known: dict[ir.Value, ir.Value] = {value: values[str(value.name)] for value in alone.graph.inputs}
    for name, value in alone.graph.initializers.items():
        known[value] = (
            values[name] if name in values else _constant(graph, value, f"{display_name(node)}.{name}", names)
        )
    new = [_moved(inner, known, node, names) for inner in alone.graph]
    outputs = {str(value.name): value for value in node.outputs if value.name}
    graph.insert_before(node, new)
    for value in alone.graph.outputs:
        result = known[value]
        if result.producer() not in new:  # the body gives back an input or a constant, which keep their names
            result = _behind_identity(graph, node, result, names)
        _take_place(outputs[str(value.name)], result)
    graph.remove(node, safe=True)


def _constant(graph: ir.Graph, value: ir.Value, name: str, names: Names) -> ir.Value:
    copy = ir.Value(name=names.fresh(name), type=value.type, shape=value.shape, const_value=value.const_value)
    graph.register_initializer(copy)
    return copy


def _moved(inner: ir.Node, known: dict[ir.Value, ir.Value], node: ir.Node, names: Names) -> ir.Node:
    inputs = [None if value is None else known[value] for value in inner.inputs]
    moved = ir.Node(
        inner.domain, inner.op_type, inputs, list(inner.attributes.values()), num_outputs=len(inner.outputs)
    )
    moved.name = names.fresh(f"{display_name(node)}.{inner.op_type}")
    moved.metadata_props.update(node.metadata_props)
    record_origin(moved, [node])
    for old, new in zip(inner.outputs, moved.outputs, strict=True):
        new.name = names.fresh(f"{display_name(node)}.{old.name}") if old.name else ""
        new.type, new.shape = old.type, old.shape
        known[old] = new
    return moved


def _behind_identity(graph: ir.Graph, node: ir.Node, value: ir.Value, names: Names) -> ir.Value:
    identity = ir.node("Identity", [value], name=names.fresh(f"{display_name(node)}.Identity"))
    record_origin(identity, [node])
    graph.insert_before(node, [identity])
    return identity.outputs[0]


def _take_place(old: ir.Value, new: ir.Value) -> None:
    new.type, new.shape = old.type or new.type, old.shape if old.shape is not None else new.shape
    new.metadata_props.update(old.metadata_props)
    old.name, new.name = None, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
