"""Where Q/DQ goes, per scheme, on small graphs."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest
from quant_models import EITHER, SIGNED, batches_of, model_of, scheme_of, structure

from compiler.compress.quant import QuantPlan, apply, choose, observe
from compiler.compress.quant.place import place
from compiler.errors import UnsupportedModel
from compiler.model.graph import check_model
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat

CONV = "(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4] c_b, float[4,4,3,3] c_v)"
RESIDUAL = (
    CONV
    + """ => (float[N,4,4,4] y) {
    a = Conv(x, c_w, c_b)  r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, c_v)  s = Add(b, r)  t = Relu(s)
    y = Conv(t, c_v) }"""
)


def quantized(body: str, scheme: QuantScheme, *, opset: int = 18) -> tuple[ir.Model, QuantPlan]:
    model = model_of(body, opset=opset)
    plan = choose(model, observe(model, batches_of(model)), scheme)
    found = apply(model, plan)
    check_model(found)
    return found, plan


def test_nothing_is_rounded_between_a_convolution_and_its_activation() -> None:
    found, _ = quantized(RESIDUAL, scheme_of())
    assert structure(found) == [
        "x_quantized = QuantizeLinear(x, x_scale, x_zero_point)",
        "x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)",
        "a = Conv(x_dequantized, c_w_dequantized, c_b)",
        "r = Relu(a)",
        "r_quantized = QuantizeLinear(r, r_scale, r_zero_point)",
        "r_dequantized = DequantizeLinear(r_quantized, r_scale, r_zero_point)",
        "b = Conv(r_dequantized, c_v_dequantized)",
        "b_quantized = QuantizeLinear(b, b_scale, b_zero_point)",
        "b_dequantized = DequantizeLinear(b_quantized, b_scale, b_zero_point)",
        "s = Add(b_dequantized, r_dequantized)",
        "t = Relu(s)",
        "t_quantized = QuantizeLinear(t, t_scale, t_zero_point)",
        "t_dequantized = DequantizeLinear(t_quantized, t_scale, t_zero_point)",
        "y = Conv(t_dequantized, c_v_dequantized)",
    ]


def test_a_sum_fused_into_a_convolution_reads_only_the_other_operand_quantized() -> None:
    found, plan = quantized(RESIDUAL, scheme_of(fuses=("Relu", "Add")))
    assert "s = Add(b, r_dequantized)" in structure(found)
    reason = {layer.op: layer.reason for layer in plan.layers}["Add"]
    assert "kernel of" in reason


def test_a_sum_stays_float_where_the_scheme_has_none() -> None:
    found, _ = quantized(RESIDUAL, scheme_of(add=False))
    assert "s = Add(b, r)" in structure(found)


def test_a_sum_whose_result_nobody_reads_quantized_stays_float() -> None:
    body = CONV + " => (float[N,4,6,6] y) { a = Conv(x, c_w) b = Conv(x, c_w) y = Add(a, b) }"
    found, plan = quantized(body, scheme_of())
    assert "y = Add(a, b)" in structure(found)
    assert [layer.reason for layer in plan.layers if layer.op == "Add"] == ["no quantized operator reads its result"]


def test_concat_and_pool_share_one_scale_with_what_they_read() -> None:
    body = (
        (
            CONV
            + """ => (float[N,4,1,1] y) {
        a = Conv(x, c_w)  b = Relu(a)  m = MaxPool<kernel_shape=[3,3], strides=[1,1]>(b)
        n = MaxPool<kernel_shape=[3,3], strides=[1,1]>(a)  j = Concat<axis=2>(m, n)
        k = MaxPool<kernel_shape=[6,2]>(j)  y = Conv<kernel_shape=[1,1]>(k, c_u) }"""
        )
        .replace("c_v)", "c_v, float[4,4,1,1] c_u)")
        .replace("y) {", "z) {")
        .replace("y = Conv", "z = Conv")
    )
    body = body.replace("float[N,4,1,1] z", "float[N,4,H,W] z")
    _, plan = quantized(body, scheme_of(SIGNED))
    shared = {plan.tensors[name].scale for name in ("a", "b", "m", "n", "j", "k")}
    assert len(shared) == 1 and plan.tensors["x"].scale not in shared


def test_outputs_stay_float_and_keep_their_names_while_readers_inside_take_the_quantized_value() -> None:
    body = CONV + " => (float[N,4,6,6] h, float[N,4,4,4] y) { h = Conv(x, c_w)  y = Conv(h, c_v) }"
    found, _ = quantized(body, scheme_of())
    assert [(value.name, value.dtype) for value in found.graph.outputs] == [
        ("h", ir.DataType.FLOAT),
        ("y", ir.DataType.FLOAT),
    ]
    assert "y = Conv(h_dequantized, c_v_dequantized)" in structure(found)


def test_a_constant_that_others_read_too_is_not_edited() -> None:
    body = CONV + " => (float[N,4,6,6] y, float[4,3,3,3] z) { y = Conv(x, c_w)  z = Abs(c_w) }"
    model = model_of(body)
    found = apply(model, choose(model, observe(model, batches_of(model)), scheme_of()))
    before, after = (m.graph.initializers["c_w"].const_value for m in (model, found))
    assert before is not None and after is not None and np.array_equal(before.numpy(), after.numpy())


def test_a_weight_without_other_readers_is_stored_as_integers_only() -> None:
    found, _ = quantized(RESIDUAL, scheme_of())
    stored = {name: value.dtype for name, value in found.graph.initializers.items()}
    assert "c_w" not in stored and stored["c_w_quantized"] == ir.DataType.INT8


def test_int32_biases_have_the_scale_of_the_products() -> None:
    found, plan = quantized(RESIDUAL, scheme_of(float_bias=False))
    bias = found.graph.initializers["c_b_quantized"].const_value
    scale = found.graph.initializers["c_b_scale"].const_value
    assert bias is not None and scale is not None and bias.dtype == ir.DataType.INT32
    expected = np.float32(plan.tensors["x"].scale[0]) * np.asarray(plan.weights["node0/1"].scale)
    assert np.allclose(scale.numpy(), expected, rtol=1e-6)


def test_a_node_kept_float_says_why_and_reads_floats() -> None:
    model = model_of(RESIDUAL)
    plan = choose(
        model, observe(model, batches_of(model)), scheme_of(), keep_float={"node0": "its error was too large"}
    )
    assert next(layer for layer in plan.layers if layer.node == "node0").reason == "its error was too large"
    assert "a = Conv(x, c_w, c_b)" in structure(apply(model, plan))


@pytest.mark.parametrize(
    "product, axis",
    [
        ("(float[N,8] x, float[8,4] c_w) => (float[N,4] y) { y = MatMul(x, c_w) }", 1),
        ("(float[N,8] x, float[4,8] c_w) => (float[N,4] y) { y = Gemm<transB=1>(x, c_w) }", 0),
        ("(float[N,8] x, float[8,4] c_w) => (float[N,4] y) { y = Gemm(x, c_w) }", 1),
        ("(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,6,6] y) { y = Conv(x, c_w) }", 0),
    ],
)
def test_weights_have_one_scale_per_output_channel(product: str, axis: int) -> None:
    _, plan = quantized(product, scheme_of())
    (weight,) = plan.weights.values()
    assert (weight.axis, len(weight.scale)) == (axis, 4)


def test_products_of_two_computed_values_quantize_both() -> None:
    found, _ = quantized(
        "(float[N,4,8] x, float[N,8,4] z) => (float[N,4,4] y) { a = Relu(x) y = MatMul(a, z) }", scheme_of()
    )
    assert "y = MatMul(a_dequantized, z_dequantized)" in structure(found)


def test_blocks_of_int4_weights_raise_the_opset_and_nothing_else_is_quantized() -> None:
    blocks = OpScheme(weights={1: TensorFormat("int4", granularity="block", block_size=16)})
    scheme = QuantScheme("blocks", {"MatMul": blocks}, needs_calibration=False)
    model = model_of("(float[N,32] x, float[32,4] c_w) => (float[N,4] y) { y = MatMul(x, c_w) }", opset=13)
    found = apply(model, choose(model, None, scheme))
    check_model(found)
    stored = found.graph.initializers["c_w_quantized"].const_value
    assert found.graph.opset_imports[""] == 21 and stored is not None and stored.dtype == ir.DataType.INT4
    assert list(found.graph.initializers["c_w_scale"].const_value.shape) == [2, 4]  # type: ignore[union-attr]
    assert [node.op_type for node in found.graph] == ["DequantizeLinear", "MatMul"]


def test_a_matrix_without_whole_blocks_stays_float() -> None:
    blocks = OpScheme(weights={1: TensorFormat("int4", granularity="block", block_size=16)})
    model = model_of("(float[N,30] x, float[30,4] c_w) => (float[N,4] y) { y = MatMul(x, c_w) }")
    with pytest.raises(UnsupportedModel, match="no whole blocks of 16"):
        choose(model, None, QuantScheme("blocks", {"MatMul": blocks}, needs_calibration=False))


def test_an_older_opset_is_raised_to_the_one_that_has_scales_per_channel() -> None:
    body = "(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,6,6] y) { y = Conv(x, c_w) }"
    found, _ = quantized(body, scheme_of(EITHER), opset=11)
    assert found.graph.opset_imports[""] == 13


def chain(length: int) -> ir.Model:
    """Conv → Relu → Conv → …, with one weight for all."""
    type_, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 4, 8, 8])
    first = value = ir.Value(name="x", type=type_, shape=shape)
    ones = ir.tensor(np.ones((4, 4, 1, 1), np.float32), name="w")
    weight = ir.Value(name="w", type=type_, shape=ir.Shape([4, 4, 1, 1]), const_value=ones)
    nodes = []
    for number in range(length):
        op, inputs = ("Relu", [value]) if number % 2 else ("Conv", [value, weight])
        value = ir.Value(name=f"v{number}", type=type_, shape=shape)
        nodes.append(ir.Node("", op, inputs, outputs=[value], name=f"n{number}"))
    graph = ir.Graph([first], [value], nodes=nodes, initializers=[weight], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def test_time_grows_with_the_nodes_and_not_with_their_square() -> None:
    """Sixteen times the nodes: 16 × the time where it is linear, some 80 × where every node lists all kernels."""

    def seconds(model: ir.Model) -> float:
        started = time.process_time()
        place(model, scheme_of(), {})
        return time.process_time() - started

    small, large = chain(1000), chain(16000)
    assert min(seconds(large) for _ in range(2)) < 40 * min(seconds(small) for _ in range(5))
