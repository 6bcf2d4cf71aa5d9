"""What tests of passes share: models as text, structural equality, numerics against ONNX Runtime unoptimized."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from compiler.model.graph import Pass, PassResult, check_model, to_text
from compiler.model.numerics import TOLERANCES
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import make_probe

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(text if text.lstrip().startswith("<") else f"{HEADER}\n{text}")


def apply(step: Pass, text: str, *, tolerance: str = "fp32") -> tuple[ir.Model, PassResult]:
    """Runs the pass once, and sees to what every pass owes: valid, same outputs, done after one run."""
    model = parse(text)
    infer_shapes(model)
    probe = make_probe(model)
    result = step(model)
    check_model(model)
    assert probe.expected is not None, probe.why
    assert TOLERANCES[tolerance].accepts(probe.worst(model))
    again = step(model)
    assert not again.modified
    assert again.notes == result.notes
    return model, result


def assert_same(model: ir.Model, expected: str) -> None:
    assert shape_of(model) == shape_of(parse(expected)), to_text(model)


def assert_left_alone(step: Pass, text: str) -> PassResult:
    model, result = apply(step, text)
    assert not result.modified
    assert_same(model, text)
    return result


def shape_of(model: ir.Model) -> list[object]:
    """Nodes with inputs, attributes and outputs by name, then the initializers with their numbers."""
    nodes = [
        (
            node.op_type,
            [None if value is None else value.name for value in node.inputs],
            sorted(
                (name, str(attribute.value))
                for name, attribute in node.attributes.items()
                if attribute.type != ir.AttributeType.GRAPH
            ),
            [value.name for value in node.outputs],
        )
        for node in model.graph.all_nodes()
    ]
    held = {
        name: (value.const_value.dtype, value.const_value.numpy().tolist())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    interface = [
        (value.name, str(value.type), str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)
    ]
    return [interface, nodes, sorted(held.items())]


def with_weight(model: ir.Model, name: str, array: np.ndarray) -> ir.Model:
    """Turns a graph input into an initializer; text cannot say large ones."""
    value = next(value for value in model.graph.inputs if value.name == name)
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(array)
    model.graph.register_initializer(value)
    return model


def recurrent() -> ir.Model:
    """Three layers that quantize at each of forty steps: their noise grows from step to step."""
    random, nodes, constants = np.random.default_rng(0), [], {"axes": np.array([1], np.int64)}
    for layer in range(3):
        weights = {key: random.integers(-127, 128, (1, 8, 32)).astype(np.int8) for key in ("w", "r")}
        scales = {f"{key}s": np.full(1, 0.04, np.float32) for key in weights}
        zeros = {f"{key}z": np.zeros(1, np.int8) for key in weights}
        constants |= {f"{key}{layer}": array for key, array in (weights | scales | zeros).items()}
        inputs = ["w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
        names = [f"h{layer}", *(f"{key}{layer}" if key else "" for key in inputs)]
        nodes += [
            onnx.helper.make_node("DynamicQuantizeLSTM", names, [f"y{layer}"], domain="com.microsoft", hidden_size=8),
            onnx.helper.make_node("Squeeze", [f"y{layer}", "axes"], [f"h{layer + 1}"]),
        ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [40, 1, 8]) for name in ("h0", "h3")]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    infer_shapes(model)
    return model
