"""A Q/DQ model with its integer regions replaced by kernels: nodes of the domain `fleetc.integer`, one per kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from targets.arm_tvm.integer.conv import dot_for
from targets.arm_tvm.integer.kernels import Kernel
from targets.arm_tvm.integer.packing import pack_depthwise, pack_weights
from targets.arm_tvm.integer.recognize import Match, image_of, match
from targets.arm_tvm.integer.specs import BLOCK, ConvSpec, Dot, Image, PackSpec, Spec, UnpackSpec
from targets.arm_tvm.integer.tensors import Quantized, dequantized, is_op, quantized, static_shape
from targets.arm_tvm.integer.tiles import tile_choices

DOMAIN = "fleetc.integer"
OPERATOR = "IntegerKernel"


@dataclass(frozen=True)
class IntegerModel:
    """A model and the kernels its nodes of our domain name.

    Args:
        model: The graph; what is not integer is as it was.
        kernels: By the attribute `kernel` of those nodes.
    """

    model: ir.Model
    kernels: Mapping[int, Kernel]


def use_integers(model: ir.Model, dot: Dot) -> IntegerModel:
    """Replaces what integer kernels can compute.

    Args:
        model: With shapes and types; left as it is.
        dot: How the machine multiplies int8.
    """
    work = _Rewrite(model.clone(), dot)
    for found in _matches(work.model):
        work.take(found)
    work.finish()
    return IntegerModel(work.model, work.kernels)


def _matches(model: ir.Model) -> list[Match]:
    """All kernels, each after those that make what it reads."""
    place = {node: index for index, node in enumerate(model.graph)}
    taken: set[ir.Node] = set()
    found = []
    for node in model.graph:
        candidate = match(node) if node not in taken else None
        if candidate is not None:
            found.append(candidate)
            taken.update((node, *candidate.tail.nodes))
    return sorted(found, key=lambda one: place[one.last])


@dataclass
class _Rewrite:
    model: ir.Model
    dot: Dot
    kernels: dict[int, Kernel] = field(default_factory=dict)
    replaced: set[ir.Node] = field(default_factory=set)
    packed: dict[tuple[ir.Value, Image], ir.Value] = field(default_factory=dict)
    made: dict[ir.Value, tuple[ir.Value, Image, Quantized | None]] = field(default_factory=dict)

    def take(self, found: Match) -> None:
        """Puts one kernel in the place of what it computes."""
        last = found.last
        if isinstance(found.spec, ConvSpec) and found.spec.source.layout == "pixels":
            self._pads[found.inputs[0][0].value, found.spec.source] = found.spec.pads
        arguments = [self._packed(tensor, image, last) for tensor, image in found.inputs]
        if found.spec is None:
            (output,) = arguments
        else:
            kernel, constants = self._kernel(found)
            output = self._node(kernel, [arguments[0], *constants, *arguments[1:]], last, found.node.name)
        self.replaced.update((found.node, *found.tail.nodes))
        self.packed[found.tail.end, found.image] = output
        self.made[found.tail.end] = (output, found.image, found.tail.result)

    def finish(self) -> None:
        """Gives what still reads a tensor of ours the tensor it knew, and removes what nothing reads."""
        for value, (output, image, result) in self.made.items():
            readers = [(node, index) for node, index in value.uses() if self._lives(node)]
            if not readers and not value.is_graph_output():
                continue
            for node, index in readers:
                if is_op(node, "DequantizeLinear") and result is not None and dequantized(node.outputs[0]) is not None:
                    floats = self._unpacked(node.outputs[0], output, image, dequantized(node.outputs[0]), node)
                    _hand_over(node.outputs[0], floats)
                    self.replaced.add(node)
                else:
                    node.replace_input_with(index, self._raw(value, output, image, result, node))
            if value.is_graph_output():
                last = value.producer()
                assert last is not None
                _hand_over(value, self._raw(value, output, image, result, last))
        self.model.graph.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(self.model)

    def _lives(self, node: ir.Node) -> bool:
        """Whether something outside of our kernels reads what a node makes."""
        if node in self.replaced or not is_op(node, "DequantizeLinear"):
            return node not in self.replaced
        (made,) = node.outputs
        return made.is_graph_output() or any(reader not in self.replaced for reader, _ in made.uses())

    def _raw(
        self, value: ir.Value, output: ir.Value, image: Image, result: Quantized | None, before: ir.Node
    ) -> ir.Value:
        """The very tensor, in the model's layout: integers as they are, or floats."""
        return self._unpacked(value, output, image, None if result is None else replace(result, scale=0.0), before)

    def _unpacked(
        self, like: ir.Value, output: ir.Value, image: Image, result: Quantized | None, before: ir.Node
    ) -> ir.Value:
        shape = static_shape(like)
        assert shape is not None
        raw = result is not None and result.scale == 0.0
        dtype = result.dtype if result is not None and raw else "float32"
        zero, scale = (result.zero_point, result.scale) if result is not None else (0, 1.0)
        spec = UnpackSpec(image, "float32" if result is None else "int8", dtype, shape, scale, zero)
        made = self._node(Kernel(spec, self.dot), [output], before, like.name)
        made.shape, made.dtype = ir.Shape(shape), like.dtype
        return made

    def _packed(self, tensor: Quantized, image: Image, before: ir.Node) -> ir.Value:
        """The tensor in the layout a kernel wants; made once."""
        found = self.packed.get((tensor.value, image))
        if found is not None:
            return found
        if tensor.value in self.made:  # in another layout, by another kernel
            value, held, result = self.made[tensor.value]
            source = self._raw(tensor.value, value, held, result, before)
            made = self._pack(source, tensor.dtype, tensor, image, before)
        else:
            producer = tensor.value.producer()
            known = quantized(producer) if producer is not None and is_op(producer, "QuantizeLinear") else None
            if producer is not None and known is not None and static_shape(producer.inputs[0]) is not None:
                made = self._pack(producer.inputs[0], "float32", known, image, before)
            else:
                made = self._pack(tensor.value, tensor.dtype, tensor, image, before)
        self.packed[tensor.value, image] = made
        return made

    def _pack(self, source: ir.Value | None, dtype: str, tensor: Quantized, image: Image, before: ir.Node) -> ir.Value:
        shape = static_shape(tensor.value) or static_shape(source)
        assert source is not None and shape is not None
        inner = image_of(shape) or image
        sizes = (inner.batch, inner.channels, inner.height, inner.width)
        pads = self._pads.get((tensor.value, image), (0, 0))
        spec = PackSpec(sizes, dtype, image, pads, tensor.scale, tensor.zero_point)
        return self._node(Kernel(spec, self.dot), [source], before, tensor.value.name)

    _pads: dict[tuple[ir.Value, Image], tuple[int, int]] = field(default_factory=dict)

    def _kernel(self, found: Match) -> tuple[Kernel, list[ir.Value]]:
        spec: Spec | None = found.spec
        assert spec is not None
        if not isinstance(spec, ConvSpec) or found.weights is None or found.factors is None:
            return Kernel(spec, self.dot), []
        dot = dot_for(spec, self.dot)
        if spec.depthwise:
            kernel, packed = Kernel(spec, dot), pack_depthwise(found.weights)
        else:
            kernel = Kernel(spec, dot, tile_choices(spec, dot)[0])
            assert kernel.tile is not None
            packed = pack_weights(found.weights, spec, kernel.tile, dot)
        missing = spec.result.blocks * BLOCK - spec.result.channels
        scale, bias = (np.pad(factor, (0, missing)).astype(np.float32) for factor in found.factors)
        name = found.node.name or found.tail.end.name
        return kernel, [
            self._constant(f"{name}.{part}", array)
            for part, array in (("weights", packed), ("scale", scale), ("bias", bias))
        ]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:  # type: ignore[type-arg]  # int8 or float32
        taken = self.model.graph.initializers
        while name in taken:
            name += "_"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def _node(self, kernel: Kernel, inputs: list[ir.Value], before: ir.Node, name: str | None) -> ir.Value:
        key = len(self.kernels)
        self.kernels[key] = kernel
        node = ir.Node(
            DOMAIN, OPERATOR, inputs, [ir.AttrInt64("kernel", key)], name=f"{name or ''}.{kernel.name}.{key}"
        )
        node.outputs[0].name = f"{node.name}.out"
        self.model.graph.insert_before(before, node)
        return node.outputs[0]


def _hand_over(old: ir.Value, new: ir.Value) -> None:
    """Lets all readers, and the graph's outputs, have the new value under the old name."""
    for node, index in tuple(old.uses()):
        node.replace_input_with(index, new)
    graph = new.producer().graph  # type: ignore[union-attr]  # it was just made
    for index, value in enumerate(graph.outputs):  # type: ignore[union-attr, arg-type]
        if value is old:
            name = old.name
            old.name = f"{name}.before"
            new.name, new.type = name, old.type
            graph.outputs[index] = new  # type: ignore[union-attr, index]
