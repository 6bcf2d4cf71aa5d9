"""Shapes inferred anew from the inputs, on the model without its weights."""

from __future__ import annotations

import onnx_ir as ir

from compiler.model.frontend.tensors import each_graph
from compiler.model.graph import infer_strictly, skeleton


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


def _take(value: ir.Value, inferred: ir.Value) -> None:
    value.type = inferred.type if inferred.type is not None else value.type
    value.shape = ir.Shape(inferred.shape) if inferred.shape is not None else value.shape
