"""Functions on the graph type, `onnx_ir.Model`: skeleton without weights, digest, checks; the protocol of passes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

SMALL_TENSOR_BYTES = 4096
"""Initializers up to this size take part in shape inference and checking; larger ones are only weights."""

_MISINFERRED = frozenset({"MeanVarianceNormalization"})
"""Valid operators that ONNX's strict inference refuses: their own function body has an empty Constant."""

MAX_SHAPE_VECTOR = 1 << 20
"""Elements of a vector that may still be followed as a shape: far more than any shape has, and cheap to lay out."""


@dataclass(frozen=True)
class PassResult:
    """What one pass did to a model, in place.

    Args:
        modified: Whether anything changed; a second run of the same pass must say False.
        notes: What was looked at and left alone, each with its reason, or what a guard detected.
    """

    modified: bool
    notes: tuple[str, ...] = field(default=())


class Pass(Protocol):
    """A graph pass: called with a model, which it changes in place."""

    @property
    def name(self) -> str:
        """Verb and object in kebab case: `fuse-conv-bn`."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrites the model in place and says truthfully whether it changed."""


@runtime_checkable
class Lossy(Protocol):
    """A pass whose purpose is a coarser result (another precision): gates judge its result, the probe does not."""

    lossy: bool


@dataclass(frozen=True)
class FunctionPass:
    """A pass made of a name and a function."""

    name: str
    function: Callable[[ir.Model], PassResult]

    def __call__(self, model: ir.Model) -> PassResult:
        """Runs the function."""
        return self.function(model)


def to_text(model: ir.Model) -> str:
    """The model in ONNX text syntax."""
    return str(ir.to_onnx_text(model))


def skeleton(model: ir.Model, *, keep_bytes: int = SMALL_TENSOR_BYTES) -> onnx.ModelProto:
    """The model without its weights: initializers above `keep_bytes` become graph inputs of the same name and type.

    Checker, shape inference and simplifier need only the structure, so weights are not copied for them.
    """
    bare = model.clone()
    for value in list(bare.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > keep_bytes:
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            value.const_value = None
            del bare.graph.initializers[str(value.name)]
            if value not in bare.graph.inputs:
                bare.graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):  # a relative path is not valid for a reader of the skeleton
            value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return ir.to_proto(bare)


def graph_digest(model: ir.Model) -> str:
    """SHA-256 (64 hex digits) of the graph without weights, then of every weight, in bounded memory."""
    bare = skeleton(model, keep_bytes=-1)
    for nodes in (bare.graph.node, *(function.node for function in bare.functions)):
        _drop_tensor_names(nodes)
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in sorted(graph.initializers.items()):
            if value.const_value is not None:
                digest.update(f"{name}\0{value.const_value.dtype}\0{value.const_value.shape}\0".encode())
                digest.update(_raw(value.const_value))
    return digest.hexdigest()


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """A new initializer of a graph; no other may have its name."""
    tensor = array if isinstance(array, ir.TensorProtocol) else ir.tensor(array, name=name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def add_lazy_constant(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], NDArray[Any]]
) -> ir.Value:
    """A new initializer whose array is made whenever it is asked for, and not kept: a large model never is in memory.

    Args:
        graph: Where it is added; no other initializer may have its name.
        name: Its name.
        dtype: Its type.
        shape: Its shape.
        make: Gives the array; called as long as the graph is used.
    """
    tensor = ir.LazyTensor(lambda: ir.Tensor(make(), dtype, name=name), dtype, ir.Shape(shape), name=name)
    return add_constant(graph, name, tensor)


def check_model(model: ir.Model) -> None:
    """Checks structure, types and shapes with ONNX's own checker and strict shape inference, weights left out.

    Raises:
        onnx.checker.ValidationError: The graph is not well formed.
        onnx.shape_inference.InferenceError: Types or shapes contradict each other.
    """
    bare = skeleton(model)
    onnx.checker.check_model(bare)
    infer_strictly(bare)


def infer_strictly(proto: onnx.ModelProto, *, propagate: bool = False) -> onnx.ModelProto:
    """The model with types and shapes inferred.

    Args:
        proto: A model without large weights.
        propagate: Also follow shapes through the nodes that compute them. Not done where a vector is longer than any
            shape: ONNX lays such a vector out in memory, and a damaged file can claim any length.

    Raises:
        onnx.shape_inference.InferenceError: They contradict each other.
    """
    strict = may_be_strict(proto)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=strict)
    if propagate and _longest_vector(inferred.graph) <= MAX_SHAPE_VECTOR:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=strict, data_prop=True)
    return inferred


def may_be_strict(proto: onnx.ModelProto) -> bool:
    """Whether strict inference judges every operator of the model rightly."""
    return not any(node.op_type in _MISINFERRED for node in proto.graph.node)


def _longest_vector(graph: onnx.GraphProto) -> int:
    """Elements of the longest one-dimensional value."""
    shapes = (item.type.tensor_type.shape.dim for item in (*graph.input, *graph.value_info, *graph.output))
    inner = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    lengths = (dims[0].dim_value for dims in shapes if len(dims) == 1)
    return max((*lengths, *map(_longest_vector, inner)), default=0)


def _drop_tensor_names(nodes: Iterable[onnx.NodeProto]) -> None:
    """Names of tensors inside attributes mean nothing, and clones share the tensors: a pass on one names all."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else ())):
            tensor.ClearField("name")
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            _drop_tensor_names(graph.node)


def _raw(tensor: ir.TensorProtocol) -> bytes | memoryview:
    if isinstance(tensor, ir.StringTensor):
        return b"\0".join(tensor.string_data())
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data if array.size else b""
