"""Fusions on small models in ONNX text: graph inputs named `c_…` become initializers with random or given values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from compiler.model.graph import Pass, check_model
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.rules import RulePass
from compiler.passes.values import ORIGIN_KEY, constant_of

Values = dict[str, np.ndarray]

RANDOM_SEED = 20
_LEVELS = {
    "float16": TOLERANCES["fp16"],
    "float32": TOLERANCES["fp32"],
    "float64": TOLERANCES["fp32"],
}


def model_of(body: str, *, opset: int = 18, values: Values | None = None, constant_nodes: bool = False) -> ir.Model:
    """The model of `inputs => outputs { nodes }`, its shapes inferred."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> agraph {body}')
    rng = np.random.default_rng(RANDOM_SEED)
    given = values or {}
    for value in [value for value in model.graph.inputs if value.name.startswith("c_")]:
        model.graph.inputs.remove(value)
        random = rng.normal(size=value.shape.numpy()).astype(value.dtype.numpy())
        tensor = ir.tensor(given.get(value.name, random))
        if constant_nodes:
            node = ir.node("Constant", [], {"value": tensor})
            node.outputs[0].name, name = value.name, value.name
            value.name = f"{name}_old"
            value.replace_all_uses_with(node.outputs[0])
            model.graph.insert_before(model.graph[0], [node])
        else:
            value.const_value = tensor
            value.dtype, value.shape = tensor.dtype, tensor.shape
            model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"node{index}"
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)
    return ir.from_proto(proto)


def run(model: ir.Model, seed: int = 0, *, low: float = -3.0, high: float = 3.0) -> Values:
    """Outputs of ONNX Runtime without optimizations on random inputs; dimensions with a name are 2."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else 2 for dim in value.shape]
        feeds[value.name] = rng.uniform(low, high, shape).astype(value.dtype.numpy())
    names = [value.name for value in model.graph.outputs]
    return dict(zip(names, session.run(names, feeds), strict=True))


def structure(model: ir.Model) -> list[object]:
    """What is compared: operators, attributes, wiring, shapes of constants; names, types and shapes of the outputs."""
    known: dict[ir.Value, object] = {value: value.name for value in model.graph.inputs}
    lines: list[object] = []
    for node in model.graph:
        if node.op_type == "Constant":
            continue
        inputs = [_known(known, value) for value in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = sorted((name, str(attr.value)) for name, attr in node.attributes.items())
        lines.append((node.op_type, inputs, attributes))
        known.update({value: f"%{len(lines)}.{index}" for index, value in enumerate(node.outputs)})
    lines.append([(value.name, value.dtype, str(value.shape), known.get(value)) for value in model.graph.outputs])
    return lines


def _known(known: dict[ir.Value, object], value: ir.Value | None) -> object:
    if value is None:
        return None
    array = constant_of(value)
    return known[value] if array is None else f"constant{list(array.shape)}"


def assert_fuses(
    fusion: Pass,
    before: str,
    expected: str,
    *,
    opset: int = 18,
    values: Values | None = None,
    constant_nodes: bool = False,
    low: float = -3.0,
) -> ir.Model:
    """The pass makes `expected` of `before`, with the same outputs, truthfully, once, and touching no initializer."""
    model = model_of(before, opset=opset, values=values, constant_nodes=constant_nodes)
    wanted = run(model, low=low)
    kept = {name: np.array(value.const_value.numpy()) for name, value in model.graph.initializers.items()}
    assert fusion(model).modified
    assert structure(model) == structure(model_of(expected, opset=opset))
    check_model(model)
    assert_close(wanted, run(model, low=low))
    assert not fusion(model).modified
    for name, array in kept.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)
    if isinstance(fusion, RulePass) and structure(model)[:-1]:
        assert any(ORIGIN_KEY in node.metadata_props for node in model.graph)
    return model


def assert_leaves(
    fusion: Pass,
    before: str,
    reason: str,
    *,
    opset: int = 18,
    values: Values | None = None,
) -> None:
    """The pass leaves the model as it is, and notes a reason that contains `reason`; empty: notes nothing."""
    model = model_of(before, opset=opset, values=values)
    unchanged = structure(model)
    result = fusion(model)
    assert not result.modified
    assert structure(model) == unchanged
    if reason:
        assert any(reason in note for note in result.notes), result.notes
    else:
        assert result.notes == ()


def assert_close(expected: Values, actual: Values) -> None:
    """The outputs agree to the level of their type."""
    for name, stats in compare_all(expected, actual).items():
        assert _LEVELS[expected[name].dtype.name].accepts(stats), (name, stats)
        assert actual[name].dtype == expected[name].dtype
