"""flatten-softmax: Softmax, LogSoftmax and Hardmax of opset 12 and older, written so that every opset agrees.

Until opset 12 they normalize over all dimensions from `axis` (default 1) on, together; since opset 13 over one. So

    Softmax₁₁(x, axis)  →  Reshape(Softmax(Flatten(x, axis), axis=1), shape of x)

unless `axis` is the last dimension, or all dimensions behind it have size 1. Toolchains take the old operator for the
new one, the version converter knows only some of the three, and pruning asks which axis is normalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult, add_constant
from compiler.passes.values import Names, display_name, graphs_of, record_origin

OPERATORS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
NEW_OPSET = 13


def flatten_softmax(model: ir.Model) -> PassResult:
    """Rewrites in the main graph and in subgraphs; notes name what has no known rank."""
    if model.graph.opset_imports.get("", NEW_OPSET) >= NEW_OPSET:
        return PassResult(False)
    names, notes = Names(model), list[str]()
    modified = [_flatten(graph, node, names, notes) for graph in graphs_of(model) for node in graph]
    return PassResult(any(modified), tuple(notes))


def _flatten(graph: ir.Graph, node: ir.Node, names: Names, notes: list[str]) -> bool:
    if node.op_type not in OPERATORS or node.domain != "":
        return False
    source = node.inputs[0]
    if source is None or source.shape is None:
        notes.append(f"{display_name(node)}: the rank of its input is not known")
        return False
    sizes, axis = list(source.shape), node.attributes.get_int("axis", 1)
    axis = axis + len(sizes) if axis < 0 else axis
    if all(size == 1 for size in sizes[axis + 1 :]):
        return False
    flat = _node(graph, node, "Flatten", [source], {"axis": axis}, names)
    flat.shape = ir.Shape([_product(sizes[:axis]), _product(sizes[axis:])])
    node.replace_input_with(0, flat)
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    _restore_shape(graph, node, source, names)
    return True


def _product(sizes: Sequence[int | ir.SymbolicDim]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return prod(known) if len(known) == len(sizes) else None


def _restore_shape(graph: ir.Graph, node: ir.Node, source: ir.Value, names: Names) -> None:
    """Puts a Reshape behind the node that takes over the name, type and shape of its output."""
    old = node.outputs[0]
    reshape = ir.node("Reshape", [old, _shape(graph, node, source, names)], name=names.fresh(f"{node.name}.Reshape"))
    record_origin(reshape, [node])
    new = reshape.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    reshape.replace_input_with(0, old)  # the line above let the Reshape read itself
    name, flat = str(old.name), node.inputs[0]
    old.name, new.name, old.shape = names.fresh(f"{name}_flat"), name, None if flat is None else flat.shape
    graph.insert_after(node, [reshape])


def _shape(graph: ir.Graph, node: ir.Node, source: ir.Value, names: Names) -> ir.Value:
    """The sizes as a constant where one at most is not known, computed otherwise."""
    sizes = [size if isinstance(size, int) else -1 for size in source.shape or ()]
    if sizes.count(-1) > 1 or 0 in sizes:  # 0 would mean another size than itself
        return _node(graph, node, "Shape", [source], {}, names)
    return add_constant(graph, names.fresh(f"{node.outputs[0].name}_shape"), np.array(sizes, np.int64))


def _node(
    graph: ir.Graph, node: ir.Node, op: str, inputs: list[ir.Value], attributes: dict[str, int], names: Names
) -> ir.Value:
    """The output of a new node in front of `node`."""
    made = ir.node(op, inputs, attributes, name=names.fresh(f"{node.name}.{op}"))
    record_origin(made, [node])
    made.outputs[0].name = names.fresh(f"{node.outputs[0].name}_{op.lower()}")
    made.outputs[0].type = ir.TensorType(ir.DataType.INT64) if op == "Shape" else inputs[0].type
    graph.insert_before(node, [made])
    return made.outputs[0]


FLATTEN_SOFTMAX = FunctionPass("flatten-softmax", flatten_softmax)
