"""A border model as a function of PyTorch tensors, with trainable weights, and its conversion back to ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch.utils.checkpoint import checkpoint

from compiler.compress.recover.operators import ARITHMETIC, Operator, Tensor
from compiler.compress.recover.operators_layers import LAYERS
from compiler.compress.recover.operators_movement import MOVEMENT
from compiler.errors import UnsupportedModel
from compiler.passes.values import constant_of, display_name

OPERATORS: Mapping[str, Operator] = {**ARITHMETIC, **LAYERS, **MOVEMENT}

_TRAINED: Mapping[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
}
"""Which inputs of an operator are weights, where they are constants of float32 with more than one element."""

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """The main graph of a model, node after node.

    Args:
        nodes: Its nodes, in order.
        outputs: Names of its outputs.
        constants: Initializers that stay as they are.
        weights: Initializers that may be trained.
        last_used: Value → index of the last node that reads it; the value is released after it.
    """

    nodes: tuple[ir.Node, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    last_used: Mapping[str, int]


def network_of(model: ir.Model, *, device: str = "cpu") -> Network:
    """The model's graph as a network; tensors are copies.

    Args:
        model: A border model in float32 whose constants are initializers, as
            `compiler.compress.prune.prepare` makes it.
        device: PyTorch's name of the device.

    Raises:
        UnsupportedModel: It has operators without a counterpart here; each is named.
    """
    _refuse_unknown(model)
    weights, constants = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in model.graph.initializers.items():
        tensor = torch.from_numpy(np.array(constant_of(value))).to(device)
        (weights if _is_trained(value) else constants)[name] = tensor
    last = {str(value.name): place for place, node in enumerate(model.graph) for value in node.inputs if value}
    outputs = tuple(str(value.name) for value in model.graph.outputs)
    return Network(tuple(model.graph), outputs, constants, weights, last)


def run(network: Network, inputs: Mapping[str, Tensor], *, taps: Sequence[str] = (), segments: int = 1) -> Values:
    """Outputs and other values by name.

    Args:
        network: The network.
        inputs: Graph inputs by name.
        taps: Further values inside to return.
        segments: Segments of the graph of which only the boundary values are stored for the backward pass; those inside
            are recomputed (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
    """
    names = {*network.outputs, *taps}
    values: Values = dict(inputs)
    size = -(-len(network.nodes) // segments)
    for start in range(0, len(network.nodes), size):
        places = range(start, min(start + size, len(network.nodes)))
        if segments == 1:
            values = _walk(network, places, values, names)
        else:
            values = checkpoint(_walk, network, places, values, names, use_reentrant=False)
    return {name: values[name] for name in names}


def _walk(network: Network, places: range, values: Values, wanted: set[str]) -> Values:
    """Computes some nodes; values without later readers are released."""
    live = dict(values)
    fixed = {**network.constants, **network.weights}
    for place in places:
        node = network.nodes[place]
        names = [None if value is None else str(value.name) for value in node.inputs]
        inputs = [None if name is None else live[name] if name in live else fixed[name] for name in names]
        result = OPERATORS[node.op_type](node, *inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        live |= {str(value.name): tensor for value, tensor in zip(node.outputs, outputs, strict=False) if value.name}
        for name in {name for name in names if name in live and name not in wanted}:
            if network.last_used[str(name)] <= place:
                del live[str(name)]
    return live


def with_weights(model: ir.Model, weights: Mapping[str, Tensor]) -> ir.Model:
    """A copy of the model with these weights; names, types and shapes stay.

    Args:
        model: The model the network was made of.
        weights: Initializer → its new value, of the old shape.
    """
    copy = model.clone()
    for name, tensor in weights.items():
        value = copy.graph.initializers[name]
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        value.const_value = ir.tensor(array.copy(), dtype=value.dtype, name=name)
    return copy


def _is_trained(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < 2:
        return False
    return any(index in _TRAINED.get(node.op_type, ()) for node, index in value.uses())


def _refuse_unknown(model: ir.Model) -> None:
    unknown = [
        f"{node.op_type} '{display_name(node)}'"
        for node in model.graph
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx")
    ]
    if unknown:
        raise UnsupportedModel(
            f"no counterpart in PyTorch is known for {len(unknown)} operators: {', '.join(unknown[:5])}",
            remedy="Build without recovery; the pruned model itself is whole.",
        )
