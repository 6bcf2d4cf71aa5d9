"""infer-shapes: fills in the type and shape of every value, so that later passes and capabilities see them.

What is known is only made more precise: an unknown shape or dimension is filled in, a number is never replaced, a graph
input or output is never touched. ONNX's own inference runs on the model without its weights.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult, skeleton
from compiler.passes.values import graphs_of


def infer_shapes(model: ir.Model) -> PassResult:
    """Fills in missing types and shapes of the values of the main graph and of subgraphs."""
    try:
        proto = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        return PassResult(False, (f"shapes could not be inferred: {error}",))
    inferred = ir.from_proto(proto)
    pairs = zip(graphs_of(model), graphs_of(inferred), strict=True)
    modified = any([_fill_graph(graph, source) for graph, source in pairs])
    return PassResult(modified, _unknown(model))


def _fill_graph(graph: ir.Graph, inferred: ir.Graph) -> bool:
    nodes = zip(graph, inferred, strict=True)
    # strict=False: an optional output spelled as an empty name at the end is not written to the protobuf
    values = [pair for ours, theirs in nodes for pair in zip(ours.outputs, theirs.outputs, strict=False)]
    return any([_fill(value, source) for value, source in values])


def _fill(value: ir.Value, inferred: ir.Value) -> bool:
    if value.is_graph_output() and value.shape is not None and value.type is not None:
        return False
    modified = False
    if value.type is None and inferred.type is not None:
        value.type, modified = inferred.type, True
    if inferred.shape is None:
        return modified
    shape = inferred.shape if value.shape is None else _more_precise(value.shape, inferred.shape)
    if value.shape is None or list(shape) != list(value.shape):
        value.shape, modified = ir.Shape(list(shape)), True
    return modified


def _more_precise(known: ir.Shape, inferred: ir.Shape) -> ir.Shape:
    if len(known) != len(inferred):
        return known
    return ir.Shape([_size(ours, theirs) for ours, theirs in zip(known, inferred, strict=True)])


def _size(known: int | ir.SymbolicDim, inferred: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(known, int) or (known.value is not None and not isinstance(inferred, int)):
        return known
    return inferred


def _unknown(model: ir.Model) -> tuple[str, ...]:
    """Notes on what remains unknown."""
    names = [
        str(value.name)
        for graph in graphs_of(model)
        for node in graph
        for value in node.outputs
        if value.name and (value.type is None or value.shape is None)
    ]
    return (f"no shape could be inferred for {len(names)} values, the first is '{names[0]}'",) if names else ()


INFER_SHAPES = FunctionPass("infer-shapes", infer_shapes)
