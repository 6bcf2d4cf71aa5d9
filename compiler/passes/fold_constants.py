"""fold-constants: what depends on nothing but constants is computed now.

1. Constant nodes become initializers.
2. Shape and Size of what has a static shape, and Gather, Slice, Concat, Squeeze, Unsqueeze, Cast of known dimensions,
   even where the other dimensions are symbolic.
3. Any other operator of ONNX whose inputs are all constants, evaluated by ONNX Runtime alone and unoptimized.
A result may make the model at most `budget_bytes` larger than the constants it replaces, so that ConstantOfShape,
Expand and Tile are not written out as large tensors. Never folded: random numbers, control flow,
quantization. Functions are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.graph import PassResult, skeleton
from compiler.model.numerics import Array
from compiler.passes.known_sizes import known_sizes
from compiler.passes.probe import RANDOM_OPERATORS, run_unoptimized
from compiler.passes.values import constant_tensor, display_name, graphs_of

BUDGET_BYTES = 64 * 1024
"""Growth allowed per folded node: enough for a table of positions (64 KiB), too little for an expanded mask."""

NEVER = RANDOM_OPERATORS | {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Dropout",
    "If",
    "Loop",
    "Scan",
}
"""Q and DQ mark how a constant is stored on the device; folding would undo a quantization."""


@dataclass(frozen=True)
class FoldConstants:
    """The pass.

    Args:
        budget_bytes: How much larger the model may become per folded node.
    """

    budget_bytes: int = BUDGET_BYTES
    name: str = "fold-constants"

    def __call__(self, model: ir.Model) -> PassResult:
        """Folds in the main graph and in subgraphs, in order, so that chains fold as a whole."""
        notes: list[str] = []
        modified = False
        for graph in graphs_of(model):
            for node in graph:
                results = _evaluate(node, model, self.budget_bytes, notes) if _may_fold(node) else None
                if results is not None:
                    _replace(graph, node, results)
                    modified = True
        return PassResult(modified, tuple(notes))


def _may_fold(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type in NEVER or any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    return not any(value.is_graph_output() for value in node.outputs)


Results = list[tuple[ir.Value, ir.TensorProtocol]]


def _evaluate(node: ir.Node, model: ir.Model, budget_bytes: int, notes: list[str]) -> Results | None:
    if node.op_type == "Constant":
        tensor = constant_tensor(node.outputs[0])
        return None if tensor is None else [(node.outputs[0], tensor)]
    sizes = known_sizes(node.outputs[0])
    if sizes is not None and (node.outputs[0].dtype or ir.DataType.INT64) == ir.DataType.INT64:
        return [(node.outputs[0], ir.tensor(sizes))]
    if not node.inputs or any(value is not None and constant_tensor(value) is None for value in node.inputs):
        return None
    try:
        return _run_alone(node, model, budget_bytes)
    except _LeftAlone as reason:
        notes.append(f"{display_name(node)}: {reason}")
    except UnsupportedModel as error:
        notes.append(f"{display_name(node)}: not folded, {error.what}")
    return None


class _LeftAlone(Exception):
    """Why a node with constant inputs is not folded."""


def _run_alone(node: ir.Node, model: ir.Model, budget_bytes: int) -> Results:
    alone = _alone(node, model)
    growth = _predicted_bytes(alone) - _freed_bytes(node)
    if growth > budget_bytes:
        raise _LeftAlone(f"folded it would add {growth} bytes to the model, {budget_bytes} are allowed")
    arrays = run_unoptimized(alone, {})
    values = [value for value in node.outputs if value.name]
    return [(value, _tensor(arrays[str(value.name)], value)) for value in values]


def _tensor(array: Array, value: ir.Value) -> ir.TensorProtocol:
    dtype = value.dtype
    if dtype == ir.DataType.STRING or array.dtype.kind == "O":
        raise _LeftAlone("not folded, it makes text")
    fits = dtype is None or array.dtype == dtype.numpy()
    return ir.tensor(array if fits or dtype is None else array.astype(dtype.numpy()))


def _alone(node: ir.Node, model: ir.Model) -> ir.Model:
    """A model of this one node, its inputs initializers; tensors are shared, nothing is copied."""
    copies: dict[ir.Value, ir.Value] = {}
    for value in dict.fromkeys(value for value in node.inputs if value is not None):
        tensor = constant_tensor(value)
        if tensor is not None:
            kind = ir.TensorType(tensor.dtype)
            copies[value] = ir.Value(
                name=value.name, type=kind, shape=ir.Shape(list(tensor.numpy().shape)), const_value=tensor
            )
    inputs = [None if value is None else copies[value] for value in node.inputs]
    outputs = [ir.Value(name=value.name, type=value.type) for value in node.outputs]
    twin = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs)
    named = [value for value in outputs if value.name]
    graph = ir.Graph(
        [],
        named,
        nodes=[twin],
        initializers=list(copies.values()),
        opset_imports=model.graph.opset_imports,
        name="alone",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _predicted_bytes(alone: ir.Model) -> int:
    inferred = onnx.shape_inference.infer_shapes(skeleton(alone), data_prop=True)
    total = 0
    for value in ir.from_proto(inferred).graph.outputs:
        sizes = [] if value.shape is None else list(value.shape)
        if value.shape is None or value.dtype is None or not all(isinstance(size, int) for size in sizes):
            raise _LeftAlone("not folded, the size of the result is not known beforehand")
        total += prod(int(str(size)) for size in sizes) * value.dtype.bitwidth // 8
    return total


def _freed_bytes(node: ir.Node) -> int:
    """Bytes of the constants that no other node reads."""
    alone = [
        value
        for value in dict.fromkeys(node.inputs)
        if value is not None and all(user is node for user, _ in value.uses()) and not value.is_graph_output()
    ]
    tensors = [constant_tensor(value) for value in alone]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _replace(graph: ir.Graph, node: ir.Node, results: Results) -> None:
    inputs = [value for value in dict.fromkeys(node.inputs) if value is not None]
    for old, tensor in results:
        shape = ir.Shape(list(tensor.numpy().shape))
        name, old.name = old.name, None
        new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        new.metadata_props.update(old.metadata_props)
        new.doc_string = old.doc_string
        graph.register_initializer(new)
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    for value in inputs:
        _drop_unread(graph, value)


def _drop_unread(graph: ir.Graph, value: ir.Value) -> None:
    unread = not value.uses() and not value.is_graph_output() and not value.is_graph_input()
    if unread and value.is_initializer() and value.graph is graph and value.name in graph.initializers:
        del graph.initializers[str(value.name)]


FOLD_CONSTANTS = FoldConstants()
