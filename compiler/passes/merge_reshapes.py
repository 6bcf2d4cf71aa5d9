"""merge-reshapes: consecutive Reshapes become one, or none.

Reshape, Flatten, Squeeze and Unsqueeze keep the elements and their order, so of a chain only the last form counts.
1. Reshape(f(x), s) = Reshape(x, s) for f one of the four and s constant; a 0 in s means the form in between, so it is
   spelled out first, and the Reshape stays where that size is not known
2. a chain whose last form is the first one is x
Two forms are the same if they are equal number by number and at most one size, at one place, is symbolic: that one
follows from the number of elements.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult, add_constant
from compiler.passes.remove_identities import become_identity, bypass
from compiler.passes.values import Names, constant_of, display_name, graphs_of, record_origin, replace_input

_FORMS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def merge_reshapes(model: ir.Model) -> PassResult:
    """Merges in the main graph and in subgraphs."""
    names, notes = Names(model), list[str]()
    modified = [_merge(graph, node, names, notes) for graph in graphs_of(model) for node in graph]
    return PassResult(any(modified), tuple(notes))


def _merge(graph: ir.Graph, node: ir.Node, names: Names, notes: list[str]) -> bool:
    if not _is_form(node):
        return False
    return _drop(graph, node) or (node.op_type == "Reshape" and _skip_inner(graph, node, names, notes))


def _is_form(node: ir.Node) -> bool:
    return node.op_type in _FORMS and node.domain == "" and not any(attr.is_ref() for attr in node.attributes.values())


def _drop(graph: ir.Graph, node: ir.Node) -> bool:
    source = next((value for value in _ancestors(graph, node) if _same_form(value, node.outputs[0])), None)
    if source is None and _keeps_every_size(node):
        source = node.inputs[0]
    if source is None:
        return False
    if not bypass(graph, node, source):
        become_identity(graph, node, source)
    return True


def _ancestors(graph: ir.Graph, node: ir.Node) -> Iterator[ir.Value]:
    """What the node reads, and what the forms in front of it read, nearest first."""
    current: ir.Node | None = node
    while current is not None and current.graph is graph and _is_form(current):
        value = current.inputs[0]
        if value is None:
            return
        yield value
        current = value.producer()


def _same_form(first: ir.Value, second: ir.Value) -> bool:
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    pairs = list(zip(first.shape, second.shape, strict=True))
    symbolic = [pair for pair in pairs if not (isinstance(pair[0], int) and isinstance(pair[1], int))]
    numbers_agree = all(left == right != 0 for left, right in pairs if (left, right) not in symbolic)
    return numbers_agree and len(symbolic) <= 1


def _keeps_every_size(node: ir.Node) -> bool:
    """Reshape to [0, …, 0] with at most one −1, of a value of that rank."""
    source = node.inputs[0]
    shape = constant_of(node.inputs[1]) if node.op_type == "Reshape" else None
    if shape is None or source is None or source.shape is None or _takes_zeros(node):
        return False
    sizes = shape.tolist()
    return len(sizes) == len(source.shape) and sizes.count(-1) <= 1 and all(size in (0, -1) for size in sizes)


def _takes_zeros(node: ir.Node) -> bool:
    return "allowzero" in node.attributes and node.attributes["allowzero"].as_int() != 0


def _skip_inner(graph: ir.Graph, node: ir.Node, names: Names, notes: list[str]) -> bool:
    middle = node.inputs[0]
    inner = None if middle is None else middle.producer()
    if middle is None or inner is None or inner.graph is not graph or not _is_form(inner) or inner.inputs[0] is None:
        return False
    shape = constant_of(node.inputs[1])
    if shape is None:
        return False
    if not _takes_zeros(node) and not shape.all():
        spelled = _spelled_out(shape.tolist(), middle)
        if spelled is None:
            notes.append(f"{display_name(node)}: takes over a size of '{middle.name}' that is not known")
            return False
        _set_shape(graph, node, spelled, names)
    record_origin(node, [node, inner])
    replace_input(node, 0, inner.inputs[0])
    return True


def _spelled_out(sizes: list[int], middle: ir.Value) -> list[int] | None:
    """The sizes with each 0 replaced by the number it stands for; one that is symbolic may become the −1."""
    known = [] if middle.shape is None else list(middle.shape)
    meant = [known[axis] if size == 0 and axis < len(known) else size for axis, size in enumerate(sizes)]
    unknown = [axis for axis, size in enumerate(meant) if not isinstance(size, int) or (sizes[axis] == 0 and size == 0)]
    if len(unknown) + sizes.count(-1) > 1 or any(isinstance(meant[axis], int) for axis in unknown):
        return None
    return [size if isinstance(size, int) else -1 for size in meant]


def _set_shape(graph: ir.Graph, node: ir.Node, sizes: list[int], names: Names) -> None:
    """Gives the node its own shape constant; other nodes may read the old one."""
    name = names.fresh(f"{node.outputs[0].name}_shape")
    replace_input(node, 1, add_constant(graph, name, np.array(sizes, np.int64)))


MERGE_RESHAPES = FunctionPass("merge-reshapes", merge_reshapes)
