"""What a target lacks is written out: right values at every opset, and nothing that it lacks too is left."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from compiler.model.graph import check_model, graph_digest
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import run_unoptimized

RNG = np.random.default_rng(5)

SIMPLE = set(
    [
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Gather",
        "Greater",
        "HardSigmoid",
        "Identity",
        "Less",
        "Log",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "QuantizeLinear",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "Sigmoid",
        "Sign",
        "Slice",
        "Softmax",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""What the plainest of targets has: no Shape, no Range, no normalization."""


def lacks(node: ir.Node) -> bool:
    return node.op_type not in SIMPLE or node.domain != ""


def model_of(op: str, inputs: dict[str, np.ndarray], *, opset: int, constants=(), outputs=1, **attributes) -> ir.Model:
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    node = helper.make_node(op, list(inputs), [f"y{index}" for index in range(outputs)], name="it", **attributes)
    free = [
        helper.make_tensor_value_info(name, kinds[name], array.shape)
        for name, array in inputs.items()
        if name not in constants
    ]
    held = [onnx.numpy_helper.from_array(inputs[name], name) for name in constants]
    kind = TensorProto.INT8 if op.startswith("QLinear") else kinds[next(iter(inputs))]
    made = [helper.make_tensor_value_info(f"y{index}", kind, None) for index in range(outputs)]
    graph = helper.make_graph([node], "g", free, made, initializer=held)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    infer_shapes(model)
    return model


def written_out(model: ir.Model, inputs: dict[str, np.ndarray], *, tolerance: str = "fp32") -> list[str]:
    """Operators after the pass, which must give what the operator gave, and be done after one run."""
    feeds = {str(value.name): inputs[str(value.name)] for value in model.graph.inputs}
    expected = run_unoptimized(model, feeds)
    interface = [(value.name, value.dtype) for value in model.graph.outputs]
    step = DecomposeOperators(lacks)
    assert step(model).modified
    check_model(model)
    assert not any(lacks(node) for node in model.graph)
    assert [(value.name, value.dtype) for value in model.graph.outputs] == interface
    assert all("it" in node.metadata_props["fleetc.origin"] for node in model.graph)
    for name, stats in compare_all(expected, run_unoptimized(model, feeds)).items():
        assert TOLERANCES[tolerance].accepts(stats), (name, stats)
    digest = graph_digest(model)
    assert not step(model).modified and graph_digest(model) == digest
    return [node.op_type for node in model.graph]


def values(*shape: int, dtype=np.float32, scale: float = 2.0, shift: float = 0.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale + shift).astype(dtype)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 22])
@pytest.mark.parametrize(
    ("axis", "p", "shape"), [(-1, 2, (3, 8)), (1, 1, (2, 5, 3)), (0, 2, (4, 3)), (-2, 1, (2, 3, 4))]
)
def test_lp_normalization(opset: int, axis: int, p: int, shape: tuple[int, ...]) -> None:
    inputs = {"x": values(*shape)}
    inputs["x"][0] = 0.0  # the operator gives 0 for a norm of 0, where a plain quotient is NaN
    written_out(model_of("LpNormalization", inputs, opset=opset, axis=axis, p=p), inputs)


@pytest.mark.parametrize("opset", [17, 18, 23])
@pytest.mark.parametrize("axis", [-1, 1, 2, -2])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_layer_normalization(opset: int, axis: int, has_bias: bool, shift: float) -> None:
    """A mean far from 0 must not cost the variance its digits."""
    inputs = {"x": values(2, 3, 16, shift=shift)}
    normalized = inputs["x"].shape[axis:]
    inputs["s"] = values(*normalized)
    if has_bias:
        inputs["b"] = values(*normalized)
    model = model_of("LayerNormalization", inputs, opset=opset, axis=axis, epsilon=1e-3)
    written_out(model, inputs, tolerance="fp32" if shift == 0.0 else "fp16")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layer_normalization_of_other_types(dtype) -> None:
    inputs = {"x": values(2, 3, 16, dtype=dtype), "s": values(16, dtype=dtype), "b": values(16, dtype=dtype)}
    written_out(model_of("LayerNormalization", inputs, opset=17), inputs, tolerance="fp16")


@pytest.mark.parametrize("opset", [11, 13, 18, 22])
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 3, 4, 6), (2, 3, 2, 3, 4)])
def test_instance_normalization(opset: int, shape: tuple[int, ...]) -> None:
    inputs = {"x": values(*shape), "s": values(shape[1]), "b": values(shape[1])}
    written_out(model_of("InstanceNormalization", inputs, opset=opset, constants=("s", "b")), inputs)
    written_out(model_of("InstanceNormalization", inputs, opset=opset), inputs)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 3, 5)])
def test_group_normalization(groups: int, shape: tuple[int, ...]) -> None:
    inputs = {"x": values(*shape), "s": values(4), "b": values(4)}
    written_out(model_of("GroupNormalization", inputs, opset=21, num_groups=groups), inputs)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("axes", [None, [2, 3], [0, 1, 2, 3]])
def test_mean_variance_normalization(opset: int, axes) -> None:
    inputs = {"x": values(2, 3, 4, 5)}
    attributes = {} if axes is None else {"axes": axes}
    written_out(model_of("MeanVarianceNormalization", inputs, opset=opset, **attributes), inputs)


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [
        ("Swish", 24, {}),
        ("Swish", 24, {"alpha": 1.7}),
        ("HardSwish", 14, {}),
        ("Gelu", 20, {}),
        ("Gelu", 20, {"approximate": "tanh"}),
        ("Mish", 18, {}),
        ("Celu", 12, {"alpha": 2.0}),
        ("LogSoftmax", 13, {"axis": 1}),
        ("Softsign", 22, {}),
        ("Selu", 22, {}),
        ("ThresholdedRelu", 22, {"alpha": 0.5}),
        ("Shrink", 22, {"bias": 0.2, "lambd": 0.5}),
        ("LeakyRelu", 16, {"alpha": 0.2}),
    ],
)
def test_activations_by_the_bodies_of_onnx(op: str, opset: int, attributes: dict[str, object]) -> None:
    inputs = {"x": values(3, 4, 5)}
    written_out(model_of(op, inputs, opset=opset, **attributes), inputs)


@pytest.mark.parametrize("mask", [None, (5, 7), (2, 1, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("opset", [23, 24])
def test_plain_attention(mask, scale, opset: int) -> None:
    inputs = {"q": values(2, 3, 5, 8), "k": values(2, 3, 7, 8), "v": values(2, 3, 7, 4)}
    if mask is not None:
        inputs["m"] = values(*mask)
    operators = written_out(
        model_of("Attention", inputs, opset=opset, **({} if scale is None else {"scale": scale})), inputs
    )
    assert operators[:2] == ["Transpose", "MatMul"] and len(operators) <= 6


@pytest.mark.parametrize(
    "attributes",
    [{"q_num_heads": 3, "kv_num_heads": 3}, {"is_causal": 1, "q_num_heads": 3, "kv_num_heads": 3}],
)
def test_attention_of_rank_3_by_the_body_of_onnx(attributes) -> None:
    inputs = {"q": values(2, 5, 24), "k": values(2, 5, 24), "v": values(2, 5, 12)}
    model = model_of("Attention", inputs, opset=23, **attributes)
    feeds = {str(value.name): inputs[str(value.name)] for value in model.graph.inputs}
    expected = run_unoptimized(model, feeds)
    assert DecomposeOperators(lambda node: node.op_type in ("Attention", "Range", "Trilu"))(model).modified
    assert TOLERANCES["fp32"].accepts(compare_all(expected, run_unoptimized(model, feeds))["y0"])


@pytest.mark.parametrize("shape", [(2, 3, 8), (4, 5)])
def test_rms_normalization(shape: tuple[int, ...]) -> None:
    inputs = {"x": values(*shape), "s": values(shape[-1])}
    written_out(model_of("RMSNormalization", inputs, opset=23), inputs)


def integers(*shape: int, dtype=np.int8) -> np.ndarray:
    return RNG.integers(-40, 40, shape).astype(dtype)


@pytest.mark.parametrize(
    ("per_channel", "has_bias", "group"), list(itertools.product((False, True), (False, True), (1, 2)))
)
def test_quantized_convolution(per_channel: bool, has_bias: bool, group: int) -> None:
    scales = np.linspace(0.01, 0.05, 4).astype(np.float32) if per_channel else np.float32(0.02)
    inputs = {
        "x": integers(2, 4, 7, 7),
        "xs": np.float32(0.05),
        "xz": np.int8(3),
        "w": integers(4, 4 // group, 3, 3),
        "ws": scales,
        "wz": np.zeros(np.shape(scales), np.int8),
        "ys": np.float32(0.4),
        "yz": np.int8(-2),
    }
    if has_bias:
        inputs["b"] = RNG.integers(-500, 500, 4).astype(np.int32)
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    model = model_of(
        "QLinearConv",
        inputs,
        opset=13,
        constants=[name for name in inputs if name != "x"],
        pads=[1, 1, 1, 1],
        group=group,
    )
    written_out(model, inputs, tolerance="int8")


def test_quantized_product() -> None:
    inputs = {
        "a": integers(3, 8),
        "as": np.float32(0.05),
        "az": np.int8(3),
        "b": integers(8, 5),
        "bs": np.float32(0.02),
        "bz": np.int8(-4),
        "ys": np.float32(0.4),
        "yz": np.int8(0),
    }
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    model = model_of("QLinearMatMul", inputs, opset=13, constants=[name for name in inputs if name != "a"])
    written_out(model, inputs, tolerance="int8")


def test_a_node_in_a_branch_is_written_out_too() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[N,3] x, bool c) => (float[N,3] y) { a = Relu(x)
        y = If(c) <then_branch = t () => (float[N,3] p) { p = Gelu(a) },
                   else_branch = e () => (float[N,3] q) { q = Abs(x) }> }"""
    )
    infer_shapes(model)
    feeds = {"x": values(2, 3), "c": np.array(True)}
    expected = run_unoptimized(model, feeds)
    assert DecomposeOperators(lambda node: node.op_type == "Gelu")(model).modified
    check_model(model)
    assert "Erf" in {node.op_type for node in model.graph.all_nodes()}
    assert TOLERANCES["fp32"].accepts(compare_all(expected, run_unoptimized(model, feeds))["y"])


def test_what_the_body_would_leave_refused_stays_as_it_is() -> None:
    inputs = {"x": values(3, 4)}
    model = model_of("Gelu", inputs, opset=20)
    before = graph_digest(model)
    assert not DecomposeOperators(lambda node: node.op_type in ("Gelu", "Erf"))(model).modified
    assert graph_digest(model) == before


def test_what_the_target_takes_stays_as_it_is() -> None:
    model = model_of("Gelu", {"x": values(3, 4)}, opset=20)
    assert not DecomposeOperators(lambda node: False)(model).modified
