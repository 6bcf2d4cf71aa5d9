"""Shapes inferred anew from the inputs, on the model without its weights."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compiler.model.frontend.tensors import each_graph
from compiler.model.graph import infer_strictly, skeleton
from compiler.model.numerics import Arrays

_SIZED_BY_DATA = frozenset({"Compress", "NonMaxSuppression", "NonZero", "SequenceAt", "Unique"})
"""Operators whose result has another size for other numbers: one run does not tell it."""


def infer_shapes(model: ir.Model) -> None:
    """Replaces the shapes of all values but inputs and initializers by inferred ones, in place.

    Where inference knows nothing (an operator of a foreign domain) the shape stays as it was.

    Raises:
        onnx.shape_inference.InferenceError: The shapes contradict each other.
    """
    bare = skeleton(model)
    for inner in each_graph(bare.graph):
        del inner.value_info[:]
    for item in bare.graph.output:
        if item.type.HasField("tensor_type"):
            item.type.tensor_type.ClearField("shape")
    inferred = ir.from_proto(infer_strictly(bare, propagate=True))
    for old, new in zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True):
        for value, source in zip(old.outputs, new.outputs, strict=False):  # unused last outputs are not written
            _take(value, source)
    for graph, other in zip(model.graph.subgraphs(), inferred.graph.subgraphs(), strict=True):
        for value, source in zip(graph.inputs, other.inputs, strict=True):
            _take(value, source)


def correct_outputs(model: ir.Model, outputs: Arrays) -> tuple[str, ...]:
    """Corrects, in place, declared shapes of outputs that a run contradicts where inference could not tell.

    Args:
        model: Its inputs' sizes are what the run was made with, or ranges.
        outputs: What the run gave.

    Returns:
        A note for each output that was corrected.
    """
    has_one_size = all(value.shape is not None and value.shape.is_static() for value in model.graph.inputs)
    has_one_size &= not any(node.op_type in _SIZED_BY_DATA for node in model.graph.all_nodes())
    notes = []
    for value in model.graph.outputs:
        array = outputs.get(str(value.name))
        if array is None or value.shape is None or _agrees(value.shape, array.shape):
            continue
        notes.append(shape_note(str(value.name), value.shape, array.shape))
        known = list(value.shape) if len(value.shape) == array.ndim else [None] * array.ndim
        sizes = [dim if dim == size else None for dim, size in zip(known, array.shape, strict=True)]
        value.shape = ir.Shape(array.shape if has_one_size else sizes)
    return tuple(notes)


def shape_note(name: str, declared: ir.Shape, actual: Sequence[object]) -> str:
    """What is said of an output whose declared shape is not what the model gives."""
    sizes = ",".join(map(str, actual))
    return f"output '{name}' is declared as {declared} and is [{sizes}]; the declaration was corrected"


def same_sizes(first: ir.Shape, second: ir.Shape) -> bool:
    """Whether two shapes have the same rank and no two numbers that differ."""
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _agrees(declared: ir.Shape, shape: tuple[int, ...]) -> bool:
    pairs = zip(declared, shape, strict=False)
    return len(declared) == len(shape) and all(dim == size for dim, size in pairs if isinstance(dim, int))


def _take(value: ir.Value, inferred: ir.Value) -> None:
    value.type = inferred.type if inferred.type is not None else value.type
    value.shape = ir.Shape(inferred.shape) if inferred.shape is not None else value.shape
