"""Apply: the model with QuantizeLinear and DequantizeLinear where the plan says; weights are stored as integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.plan import QuantPlan, TensorQuant
from compiler.compress.quant.weights import round_weight, scale_array
from compiler.errors import InternalError, UnsupportedModel
from compiler.model.graph import add_constant
from compiler.model.opset import raise_opset
from compiler.passes.pipelines import BEFORE_RAISING, RAISED, load_passes, precision_passes
from compiler.passes.quantized import is_quantized
from compiler.passes.values import Names, constant_of, nodes_at, record_origin, replace_input


def apply(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """A new model: the plan's values and weights quantized, everything else as it was.

    Graph inputs and outputs keep names and types; constants that others read too stay as they are.

    Args:
        model: The one the plan was chosen for, or the same with other weights; left as it is.
        plan: What to quantize.

    Raises:
        UnsupportedModel: The model is quantized already, or its opset cannot be raised to what the formats need.
        InternalError: The plan is of another model.
    """
    if is_quantized(model):
        raise UnsupportedModel("the model is quantized already, and is not quantized a second time")
    copy = at_opset(model, plan.opset)
    _Application(copy, plan).run()
    for step in precision_passes(plan.compute):
        step(copy)
    return copy


def at_opset(model: ir.Model, opset: int) -> ir.Model:
    """A copy of the model in at least this version of the default domain, what the converter computes folded."""
    copy = model.clone()
    if copy.graph.opset_imports.get("", 1) >= opset:
        return copy
    for step in load_passes(BEFORE_RAISING):
        step(copy)
    copy = raise_opset(copy, opset, reason="its quantized form")
    for step in load_passes(RAISED):
        step(copy)
    return copy


class _Application:
    """One application of a plan: the copy that is changed, and the dequantized values it already has."""

    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self.model, self.plan, self.names = model, plan, Names(model)
        self.values = {str(value.name): value for value in model.graph.inputs}
        self.values |= {str(value.name): value for node in model.graph for value in node.outputs if value.name}
        self.dequantized: dict[tuple[str, TensorQuant], ir.Value] = {}

    def run(self) -> None:
        nodes = {str(node.name): node for node in self.model.graph}
        unknown = sorted({key.rsplit("/", 1)[0] for key in self.plan.weights} | set(self.plan.reads) - set(nodes))
        unknown = [name for name in unknown if name not in nodes]
        if unknown:
            raise InternalError(f"the quantization plan is of another model: there is no node {', '.join(unknown)}")
        for name in self.plan.int_biases:
            self._bias(nodes[name])
        for name, indices in self.plan.reads.items():
            for index in indices:
                nodes[name].replace_input_with(index, self._moving(str(nodes[name].inputs[index].name)))  # type: ignore[union-attr]
        for key, quant in self.plan.weights.items():
            name, position = key.rsplit("/", 1)
            self._weight(nodes[name], int(position), quant)

    def _moving(self, name: str) -> ir.Value:
        """A run-time value behind QuantizeLinear and DequantizeLinear."""
        quant = self.plan.tensors[name]
        if (name, quant) in self.dequantized:
            return self.dequantized[name, quant]
        value = self.values[name]
        source, stands_for = value.producer(), nodes_at(value)
        scale = self._constant(f"{name}_scale", scale_array(quant, ()))
        zero = self._constant(f"{name}_zero_point", _integers(np.asarray(quant.zero_point), quant.dtype))
        quantize = self._node("QuantizeLinear", [value, scale, zero], f"{name}_quantized")
        quantize.outputs[0].dtype = ir.DataType[quant.dtype.upper()]
        dequantize = self._node("DequantizeLinear", [quantize.outputs[0], scale, zero], f"{name}_dequantized")
        dequantize.outputs[0].dtype = ir.DataType.FLOAT
        for made in (quantize.outputs[0], dequantize.outputs[0]):
            made.shape = value.shape
        for node in (quantize, dequantize):
            record_origin(node, stands_for)
        if source is None:
            self.model.graph.insert_before(self.model.graph[0], [quantize, dequantize])
        else:
            self.model.graph.insert_after(source, [quantize, dequantize])
        self.dequantized[name, quant] = dequantize.outputs[0]
        return dequantize.outputs[0]

    def _weight(self, node: ir.Node, index: int, quant: TensorQuant) -> None:
        value = node.inputs[index]
        tensor = constant_of(value)
        if value is None or tensor is None:
            raise InternalError(f"the quantization plan is of another model: {node.name}/{index} is no constant")
        dequantized = self.dequantized.get((str(value.name), quant))
        if dequantized is None:
            integers = _integers(round_weight(tensor.astype(np.float32), quant), quant.dtype)
            dequantized = self._stored(str(value.name), integers, scale_array(quant, tensor.shape), quant, node)
            self.dequantized[str(value.name), quant] = dequantized
        self._exchange(node, index, dequantized)

    def _bias(self, node: ir.Node) -> None:
        """The bias in int32, with the scale of the products it is added to."""
        value, read = node.inputs[2], node.inputs[0]
        bias = constant_of(value)
        if value is None or read is None or bias is None:
            raise InternalError(f"the quantization plan is of another model: {node.name} has no constant bias")
        weight = self.plan.weights[f"{node.name}/1"]
        scale = np.asarray(weight.scale, np.float64) * self.plan.tensors[str(read.name)].scale[0]
        # a larger scale where the bias would overflow int32; 2**8 leaves room for the rounding of float32
        scale = np.maximum(scale, np.abs(bias).max(initial=0) / (2**31 - 2**8)).astype(np.float32)
        quant = TensorQuant("int32", tuple(map(float, scale)), 0, 0 if scale.size > 1 else None)
        integers = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        dequantized = self._stored(str(value.name), integers, scale_array(quant, bias.shape), quant, node)
        self._exchange(node, 2, dequantized)

    def _stored(
        self, name: str, integers: NDArray[Any], scale: NDArray[np.float32], quant: TensorQuant, node: ir.Node
    ) -> ir.Value:
        """A constant of integers behind DequantizeLinear."""
        inputs = [self._constant(f"{name}_quantized", integers), self._constant(f"{name}_scale", scale)]
        if quant.zero_point or quant.dtype.startswith("float8"):
            zero = np.full(scale.shape, quant.zero_point)
            inputs.append(self._constant(f"{name}_zero_point", _integers(zero, quant.dtype)))
        attributes: dict[str, Any] = {} if quant.axis is None else {"axis": quant.axis}
        attributes |= {"block_size": quant.block_size} if quant.block_size else {}
        made = self._node("DequantizeLinear", inputs, f"{name}_dequantized", attributes)
        made.outputs[0].dtype, made.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(integers.shape)
        record_origin(made, [node])
        self.model.graph.insert_before(self._first_reader(node), made)
        return made.outputs[0]

    def _first_reader(self, node: ir.Node) -> ir.Node:
        """The node to insert a constant's DequantizeLinear before, so that it precedes all of its readers."""
        return self.model.graph[0] if len(self.model.graph) else node

    def _exchange(self, node: ir.Node, index: int, new: ir.Value) -> None:
        old = node.inputs[index]
        replace_input(node, index, new)
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            self.model.graph.initializers.pop(str(old.name))

    def _constant(self, wish: str, array: NDArray[Any]) -> ir.Value:
        return add_constant(self.model.graph, self.names.fresh(wish), array)

    def _node(self, op: str, inputs: list[ir.Value], wish: str, attributes: dict[str, Any] | None = None) -> ir.Node:
        name = self.names.fresh(wish)
        made = ir.node(op, inputs, attributes, name=self.names.fresh(f"{op}:{wish}"), num_outputs=1)
        made.outputs[0].name = name
        return made


def _integers(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    return np.asarray(numbers).astype(ir.DataType[dtype.upper()].numpy())
