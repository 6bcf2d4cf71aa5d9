"""Small models in ONNX text for the quantizer: graph inputs named `c_…` become initializers with random values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat

SIGNED = TensorFormat("int8")
EITHER = TensorFormat("int8", positive="uint8")
UNSIGNED = TensorFormat("uint8", symmetric=False)
WEIGHT = TensorFormat("int8", granularity="channel", narrow=True)


def scheme_of(
    moving: TensorFormat = EITHER,
    *,
    add: bool = True,
    fuses: tuple[str, ...] = ("Relu",),
    float_bias: bool = True,
    weight: TensorFormat = WEIGHT,
) -> QuantScheme:
    """A scheme of products, pools and, where asked, additions."""
    product = OpScheme({0: moving}, {1: weight}, float_bias=float_bias, fuses=fuses)
    ops = {
        "Conv": product,
        "Gemm": product,
        "MatMul": OpScheme({0: moving, 1: moving}, {1: weight}, float_bias, fuses),
        "MaxPool": OpScheme({0: moving}, quantizes_output=False),
        "Concat": OpScheme({0: moving}, quantizes_output=False),
        "Flatten": OpScheme({0: moving}, quantizes_output=False),
    }
    return QuantScheme("test", ops | ({"Add": OpScheme({0: moving, 1: moving}, fuses=("Relu",))} if add else {}))


def model_of(body: str, *, opset: int = 18, seed: int = 7) -> ir.Model:
    """The model of `inputs => outputs { nodes }`, its shapes inferred, its nodes named."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> agraph {body}')
    rng = np.random.default_rng(seed)
    for value in [value for value in model.graph.inputs if str(value.name).startswith("c_")]:
        model.graph.inputs.remove(value)
        assert value.shape is not None and value.dtype is not None
        tensor = ir.tensor((rng.normal(size=value.shape.numpy()) / 4).astype(value.dtype.numpy()), name=value.name)
        value.const_value = tensor
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"node{index}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True))


def batches_of(model: ir.Model, *, count: int = 4, size: int = 8, seed: int = 3) -> list[dict[str, np.ndarray]]:
    """Random inputs; a named dimension is the batch."""
    rng = np.random.default_rng(seed)
    shapes = {
        str(value.name): [dim if isinstance(dim, int) else size for dim in value.shape or ()]
        for value in model.graph.inputs
    }
    return [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


def structure(model: ir.Model) -> list[str]:
    """One line per node: operator, the values it reads and makes; constants by the name they came from."""
    return [
        f"{', '.join(str(value.name) for value in node.outputs)} = {node.op_type}"
        f"({', '.join(str(value.name) if value is not None else '' for value in node.inputs)})"
        for node in model.graph
        if not (node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value)
    ]
