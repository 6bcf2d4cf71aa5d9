"""A Q/DQ model with its integer regions replaced by kernels: nodes of the domain `fleetc.integer`, one per kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compiler.target import Array, add_constant
from targets.arm_tvm.graph.quantized.recognize import Match, image_of, match, match_gate
from targets.arm_tvm.graph.quantized.tensors import Quantized, dequantized, is_op, quantized, static_shape
from targets.arm_tvm.graph.reading import array_digest
from targets.arm_tvm.kernels.integer.conv import dot_for
from targets.arm_tvm.kernels.integer.kernel import Kernel
from targets.arm_tvm.kernels.integer.packed_weights import pack_depthwise, pack_weights, start_of
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot, Image, PackSpec, Spec, UnpackSpec
from targets.arm_tvm.kernels.integer.vectors import vectors_of
from targets.arm_tvm.kernels.integer.ways import Way, choose_way

DOMAIN = "fleetc.integer"
OPERATOR = "IntegerKernel"


@dataclass(frozen=True)
class Packing:
    """What decides the order of packed weights.

    Args:
        dot: How they are multiplied.
        way: How a convolution reads them, which those of the same weights follow; None for depthwise ones.
    """

    dot: Dot
    way: Way | None


@dataclass(frozen=True)
class IntegerModel:
    """A model, and the kernels that its nodes of the domain `fleetc.integer` stand for.

    Args:
        model: The graph; what is not integer is as it was.
        kernels: By the attribute `kernel` of those nodes.
        packings: Digest of a convolution's weights → how they are packed.
    """

    model: ir.Model
    kernels: Mapping[int, Kernel]
    packings: Mapping[str, Packing] = field(default_factory=dict)


def use_integers(
    model: ir.Model,
    dot: Dot,
    schedule: Mapping[str, Mapping[str, object]] | None = None,
    *,
    packings: Mapping[str, Packing] | None = None,
) -> IntegerModel:
    """Replaces what integer kernels can compute.

    Args:
        model: With shapes and types; left as it is.
        dot: How the machine multiplies int8.
        schedule: Digest of a convolution → the way to take; others get the cheapest by prediction.
        packings: Digest of weights → how they are packed already, for the same model at another size.
    """
    rewrite = _Rewrite(model.clone(), dot, schedule or {}, packings or {})
    for matched in _matches(rewrite.model):
        rewrite.replace(matched)
    rewrite.reconnect()
    return IntegerModel(rewrite.model, rewrite.kernels, rewrite.packings)


def _matches(model: ir.Model) -> list[Match]:
    """All kernels, each after those that make what it reads."""
    place = {node: index for index, node in enumerate(model.graph)}
    claimed: set[ir.Node] = set()
    floats: dict[ir.Value, Image] = {}
    matches = []
    for node in model.graph:
        candidate = (match(node) or match_gate(node, floats)) if node not in claimed else None
        if candidate is None:
            continue
        matches.append(candidate)
        claimed.update((node, *candidate.tail.nodes))
        if candidate.tail.result is None:
            floats[candidate.tail.end] = candidate.image
    return sorted(matches, key=lambda matched: place[matched.last])


@dataclass
class _Rewrite:
    model: ir.Model
    dot: Dot
    schedule: Mapping[str, Mapping[str, object]]
    given: Mapping[str, Packing]
    packings: dict[str, Packing] = field(default_factory=dict)
    kernels: dict[int, Kernel] = field(default_factory=dict)
    replaced: set[ir.Node] = field(default_factory=set)
    packed: dict[tuple[ir.Value, Image], ir.Value] = field(default_factory=dict)
    unpacked: dict[tuple[ir.Value, Quantized | None], ir.Value] = field(default_factory=dict)
    results: dict[ir.Value, tuple[ir.Value, Image, Quantized | None]] = field(default_factory=dict)

    def replace(self, matched: Match) -> None:
        """Inserts one kernel before the last of the nodes it replaces."""
        last = matched.last
        arguments = [self._packed(tensor, image, last) for tensor, image in matched.inputs]
        arguments += [self.results[value][0] for value in matched.floats]
        if matched.spec is None:
            (output,) = arguments
        else:
            kernel, constants = self._kernel(matched, matched.spec)
            output = self._node(kernel, [arguments[0], *constants, *arguments[1:]], last, matched.node.name)
        self.replaced.update((matched.node, *matched.tail.nodes))
        self.packed[matched.tail.end, matched.image] = output
        self.results[matched.tail.end] = (output, matched.image, matched.tail.result)

    def reconnect(self) -> None:
        """Connects the remaining readers to tensors in the model's own layout, and removes unused nodes."""
        for value, (_, _, result) in self.results.items():
            for node, index in [use for use in value.uses() if self._is_read(use[0])]:
                scheme = dequantized(node.outputs[0]) if result is not None else None
                if scheme is not None:
                    _replace_value(node.outputs[0], self._unpacked(value, scheme, node.outputs[0]))
                    self.replaced.add(node)
                else:
                    node.replace_input_with(index, self._unpacked(value, None, value))
            if value.is_graph_output():
                _replace_value(value, self._unpacked(value, None, value))
        self.model.graph.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(self.model)

    def _is_read(self, node: ir.Node) -> bool:
        """Whether something outside of our kernels reads what a node makes."""
        if node in self.replaced or not is_op(node, "DequantizeLinear"):
            return node not in self.replaced
        (made,) = node.outputs
        return made.is_graph_output() or any(reader not in self.replaced for reader, _ in made.uses())

    def _unpacked(self, value: ir.Value, scheme: Quantized | None, like: ir.Value) -> ir.Value:
        """A tensor of ours in the model's layout; made once.

        Args:
            value: The tensor.
            scheme: How its integers become floats; None: it stays as it is, integers or floats.
            like: Has the name, the shape and the type of what is wanted.
        """
        key = (value, scheme)
        if key not in self.unpacked:
            output, image, result = self.results[value]
            dtype = "float32" if result is None or scheme is not None else result.dtype
            scale, zero = (scheme.scale, scheme.zero_point) if scheme is not None else (1.0, 0)
            source = "float32" if result is None else "int8"
            spec = UnpackSpec(image, source, dtype, _shape(like), scale, zero)
            made = self._node(Kernel(spec, self.dot), [output], _producer(value), like.name)
            made.shape, made.type = ir.Shape(spec.shape), like.type
            self.unpacked[key] = made
        return self.unpacked[key]

    def _packed(self, tensor: Quantized, image: Image, before: ir.Node) -> ir.Value:
        """The tensor in the layout a kernel wants; made once."""
        key = (tensor.value, image)
        if key not in self.packed and (made := self._quantized(tensor, image, before)) is not None:
            self.packed[key] = made
        if key not in self.packed:
            source, dtype, known = self._origin(tensor)
            inner = image_of(_shape(tensor.value)) or image
            sizes = (inner.batch, inner.channels, inner.height, inner.width)
            spec = PackSpec(sizes, dtype, image, known.scale, known.zero_point)
            self.packed[key] = self._node(Kernel(spec, self.dot), [source], before, tensor.value.name)
        return self.packed[key]

    def _quantized(self, tensor: Quantized, image: Image, before: ir.Node) -> ir.Value | None:
        """The tensor out of the floats that a kernel gives in the layout that is wanted; None where none does."""
        producer = tensor.value.producer()
        known = quantized(producer) if producer is not None and is_op(producer, "QuantizeLinear") else None
        floats = producer.inputs[0] if producer is not None else None
        made = self.results.get(floats) if floats is not None else None
        if made is None or known is None or producer is None or made[1:] != (image, None):
            return None
        # In whatever order they lie: sixteen at a time, as the rows of a matrix.
        count = image.elements // BLOCK
        spec = PackSpec(
            (1, BLOCK, 1, count), "float32", Image(1, BLOCK, 1, count, "rows"), known.scale, known.zero_point
        )
        output = self._node(Kernel(spec, self.dot), [made[0]], before, tensor.value.name)
        self.replaced.add(producer)
        self.results[tensor.value] = (output, image, known)
        return output

    def _origin(self, tensor: Quantized) -> tuple[ir.Value, str, Quantized]:
        """What a tensor is packed from: the floats it is made of, or its integers in the model's layout."""
        if tensor.value in self.results:  # by another kernel, in another layout
            return self._unpacked(tensor.value, None, tensor.value), tensor.dtype, tensor
        producer = tensor.value.producer()
        known = quantized(producer) if producer is not None and is_op(producer, "QuantizeLinear") else None
        floats = producer.inputs[0] if producer is not None else None
        if known is None or floats is None or floats.dtype != ir.DataType.FLOAT:
            return tensor.value, tensor.dtype, tensor
        return floats, "float32", known

    def _kernel(self, matched: Match, spec: Spec) -> tuple[Kernel, list[ir.Value]]:
        if not isinstance(spec, ConvSpec) or matched.weights is None or matched.factors is None:
            return Kernel(spec, self.dot), []
        digest = array_digest(matched.weights)
        known = self.given.get(digest)
        dot = dot_for(spec, self.dot) if known is None else known.dot
        if spec.depthwise:
            kernel, packed = Kernel(spec, dot), pack_depthwise(matched.weights, dot)
            self.packings[digest] = Packing(dot, None)
        else:
            way = choose_way(spec, dot, self.schedule, like=None if known is None else known.way)
            self.packings[digest] = Packing(dot, way)
            kernel, packed = Kernel(spec, dot, way), pack_weights(matched.weights, spec, way, dot)
        missing = spec.result.blocks * BLOCK - spec.result.channels
        scale, bias = (np.pad(factor, (0, missing)).astype(np.float32) for factor in matched.factors)
        name = matched.node.name or matched.tail.end.name
        constants: dict[str, Array] = {"weights": packed, "scale": scale, "bias": bias}
        if vectors_of(dot).moved:
            constants["start"] = start_of(matched.weights)
        return kernel, [self._constant(f"{name}.{part}", array) for part, array in constants.items()]

    def _constant(self, name: str, array: Array) -> ir.Value:
        taken = self.model.graph.initializers
        while name in taken:
            name += "_"
        return add_constant(self.model.graph, name, array)

    def _node(self, kernel: Kernel, inputs: list[ir.Value], before: ir.Node, name: str | None) -> ir.Value:
        key = len(self.kernels)
        self.kernels[key] = kernel
        node = ir.Node(
            DOMAIN, OPERATOR, inputs, [ir.AttrInt64("kernel", key)], name=f"{name or ''}.{kernel.name}.{key}"
        )
        node.outputs[0].name = f"{node.name}.out"
        self.model.graph.insert_before(before, node)
        return node.outputs[0]


def _replace_value(old: ir.Value, new: ir.Value) -> None:
    """Replaces a value in all its readers and in the graph's outputs; an output keeps its name."""
    for node, index in tuple(old.uses()):
        node.replace_input_with(index, new)
    graph = _producer(new).graph
    for index, value in enumerate(graph.outputs if graph is not None else ()):
        if graph is not None and value is old:
            name, old.name = old.name, f"{old.name}.before"
            new.name, new.type = name, old.type
            graph.outputs[index] = new


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise ValueError(f"no node makes '{value.name}'")
    return node


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = static_shape(value)
    if shape is None:
        raise ValueError(f"'{value.name}' has no fixed shape")
    return shape
