from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_close, assert_fuses, assert_leaves, model_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.fuse_conv_affine import FUSE_CONV_AFFINE

CONV = "(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4] c_b, float[%s] c_k) => (float[N,4,6,6] y)"
FUSED = "(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4] c_b) => (float[N,4,6,6] y) { y = Conv(x, c_w, c_b) }"


@pytest.mark.parametrize("shape", ["4,1,1", "1,4,1,1", "1", "1,1,1,1"])
@pytest.mark.parametrize(
    "arithmetic",
    ["Mul(h, c_k)", "Mul(c_k, h)", "Div(h, c_k)", "Add(h, c_k)", "Add(c_k, h)", "Sub(h, c_k)", "Sub(c_k, h)"],
)
def test_arithmetic_per_channel_vanishes_in_the_convolution(arithmetic, shape):
    assert_fuses(FUSE_CONV_AFFINE, CONV % shape + " { h = Conv(x, c_w, c_b)  y = " + arithmetic + " }", FUSED)


@pytest.mark.parametrize("constant_nodes", [False, True])
def test_scale_and_shift_vanish_where_the_weights_are_initializers_or_constant_nodes(constant_nodes):
    before = """(float[N,3,8,8] x, float[4,3,3,3] c_w, float[1,4,1,1] c_s, float[1,4,1,1] c_t) => (float[N,4,6,6] y)
        { a = Conv(x, c_w)  b = Mul(a, c_s)  y = Add(b, c_t) }"""
    assert_fuses(FUSE_CONV_AFFINE, before, FUSED, constant_nodes=constant_nodes)


def test_scale_alone_adds_no_bias():
    before = (
        "(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] c_k)"
        " => (float[N,4,6,6] y) { h = Conv(x, c_w)  y = Mul(h, c_k) }"
    )
    after = "(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,6,6] y) { y = Conv(x, c_w) }"
    assert_fuses(FUSE_CONV_AFFINE, before, after)


@pytest.mark.parametrize("dtype", ["float16", "float", "double"])
def test_weights_keep_their_type(dtype):
    before = "(T[N,4] x, T[4,5] c_w, T[5] c_s) => (T[N,5] y) { h = Gemm(x, c_w)  y = Mul(h, c_s) }"
    after = "(T[N,4] x, T[4,5] c_w) => (T[N,5] y) { y = Gemm(x, c_w) }"
    model = assert_fuses(FUSE_CONV_AFFINE, before.replace("T", dtype), after.replace("T", dtype))
    assert {value.dtype for value in model.graph.initializers.values()} == {model.graph.outputs[0].dtype}


def test_an_empty_bias_input_counts_as_none():
    body = "(float[N,4] x, float[4,5] c_w, float[5] c_t) => (float[N,5] y) { h = Gemm(x, c_w)  y = Add(h, c_t) }"
    model = model_of(body)
    model.graph[0].resize_inputs(3)
    wanted = run(model)
    assert FUSE_CONV_AFFINE(model).modified
    assert_close(wanted, run(model))


def test_a_transposed_convolution_with_groups_is_scaled_by_output_channel():
    before = """(float[1,4,5,5] x, float[4,3,2,2] c_w, float[6,1,1] c_s, float[6,1,1] c_t) => (float[1,6,10,10] y)
        { a = ConvTranspose<group=2, strides=[2,2]>(x, c_w)  b = Mul(a, c_s)  y = Add(b, c_t) }"""
    after = """(float[1,4,5,5] x, float[4,3,2,2] c_w, float[6] c_b) => (float[1,6,10,10] y)
        { y = ConvTranspose<group=2, strides=[2,2]>(x, c_w, c_b) }"""
    assert_fuses(FUSE_CONV_AFFINE, before, after)


@pytest.mark.parametrize("shape", ["5", "1,5", "1"])
@pytest.mark.parametrize("trans_b, weight", [(0, "4,5"), (1, "5,4")])
def test_a_gemm_takes_scale_and_shift_and_its_beta_is_folded(shape, trans_b, weight):
    before = f"""(float[N,4] x, float[{weight}] c_w, float[5] c_b, float[{shape}] c_k) => (float[N,5] y)
        {{ a = Gemm<alpha=0.5, beta=0.25, transB={trans_b}>(x, c_w, c_b)  b = Mul(a, c_k)  y = Sub(b, c_k) }}"""
    after = f"""(float[N,4] x, float[{weight}] c_w, float[5] c_b) => (float[N,5] y)
        {{ y = Gemm<alpha=0.5, transB={trans_b}>(x, c_w, c_b) }}"""
    assert_fuses(FUSE_CONV_AFFINE, before, after)


def test_a_batched_product_takes_a_scale_and_keeps_its_shift_outside():
    before = """(float[N,7,4] x, float[4,5] c_w, float[5] c_s, float[5] c_t) => (float[N,7,5] y)
        { a = MatMul(x, c_w)  b = Mul(a, c_s)  y = Add(b, c_t) }"""
    after = (
        """(float[N,7,4] x, float[4,5] c_w, float[5] c_t) => (float[N,7,5] y) { a = MatMul(x, c_w)  y = Add(a, c_t) }"""
    )
    assert_fuses(FUSE_CONV_AFFINE, before, after)


def test_a_product_of_matrices_with_a_shift_becomes_a_gemm():
    before = "(float[N,4] x, float[4,5] c_w, float[5] c_t) => (float[N,5] y) { a = MatMul(x, c_w)  y = Add(a, c_t) }"
    after = "(float[N,4] x, float[4,5] c_w, float[5] c_b) => (float[N,5] y) { y = Gemm(x, c_w, c_b) }"
    assert_fuses(FUSE_CONV_AFFINE, before, after)


def test_a_shared_weight_stays_as_it_is_for_the_other_reader():
    before = """(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] c_k) => (float[N,4,6,6] y, float[N,4,6,6] z)
        { h = Conv(x, c_w)  y = Mul(h, c_k)  z = Conv(x, c_w) }"""
    after = """(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,6,6] y, float[N,4,6,6] z)
        { y = Conv(x, c_w)  z = Conv(x, c_w) }"""
    assert_fuses(FUSE_CONV_AFFINE, before, after)


@pytest.mark.parametrize(
    "body, reason",
    [
        (CONV % "6" + " { h = Conv(x, c_w, c_b)  y = Mul(h, c_k) }", "not one number per channel"),
        (CONV % "1,4,6,6" + " { h = Conv(x, c_w, c_b)  y = Mul(h, c_k) }", "not one number per channel"),
        (
            "(float[N,3,8,8] x, float[1,3,3,3] c_w, float[4,1,1] c_k)"
            " => (float[N,4,6,6] y) { h = Conv(x, c_w)  y = Mul(h, c_k) }",
            "not one number per channel",
        ),
        (
            "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[1,1,4,1,1] c_k)"
            " => (float[1,1,4,6,6] y) { h = Conv(x, c_w)  y = Mul(h, c_k) }",
            "may add dimensions",
        ),
        (
            "(float[1,3,8,8] x, float[4,3,3,3] w, float[4,1,1] c_k)"
            " => (float[1,4,6,6] y) { h = Conv(x, w)  y = Mul(h, c_k) }",
            "the weight 'w' is not constant",
        ),
        (
            "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[4] b, float[4,1,1] c_k)"
            " => (float[1,4,6,6] y) { h = Conv(x, c_w, b)  y = Mul(h, c_k) }",
            "the bias 'b' is not constant",
        ),
        (
            "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] c_k)"
            " => (float[1,4,6,6] y, float[1,4,6,6] h) { h = Conv(x, c_w)  y = Mul(h, c_k) }",
            "also a graph output",
        ),
        (
            "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] c_k)"
            " => (float[1,4,6,6] y) { h = Conv(x, c_w)  m = Mul(h, c_k)  y = Add(m, h) }",
            "is also read by",
        ),
        (
            "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] k)"
            " => (float[1,4,6,6] y) { h = Conv(x, c_w)  y = Mul(h, k) }",
            "",
        ),
        (
            "(float[1,4] x, float[2,4,5] c_w, float[5] c_k)"
            " => (float[2,1,5] y) { h = MatMul(x, c_w)  y = Mul(h, c_k) }",
            "rank 3",
        ),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(body, reason):
    assert_leaves(FUSE_CONV_AFFINE, body, reason)


@pytest.mark.parametrize(
    "dtype, number, reason",
    [("float", 0.0, "not finite"), ("float16", 1e7, "not finite"), ("float16", 0.0, "not finite")],
)
def test_weights_that_would_not_be_finite_are_left_alone(dtype, number, reason):
    body = (
        f"({dtype}[1,3,8,8] x, {dtype}[4,3,3,3] c_w, {dtype}[4,1,1] c_k)"
        f" => ({dtype}[1,4,6,6] y) {{ h = Conv(x, c_w)  y = Div(h, c_k) }}"
    )
    kind = np.float32 if dtype == "float" else np.float16
    divisor = np.full((4, 1, 1), 0.0 if number == 0.0 else 1.0 / number, kind)
    assert_leaves(FUSE_CONV_AFFINE, body, reason, values={"c_k": divisor})


def test_weights_too_small_for_half_precision_are_left_alone():
    body = (
        "(float16[1,3,8,8] x, float16[4,3,3,3] c_w, float16[4,1,1] c_k)"
        " => (float16[1,4,6,6] y) { h = Conv(x, c_w)  y = Mul(h, c_k) }"
    )
    assert_leaves(FUSE_CONV_AFFINE, body, "too small", values={"c_k": np.full((4, 1, 1), 1e-6, np.float16)})


def test_a_large_shared_weight_is_not_copied():
    body = (
        "(float[N,600] x, float[600,600] c_w, float[600] c_k)"
        " => (float[N,600] y, float[N,600] z) { h = MatMul(x, c_w)  y = Mul(h, c_k)  z = MatMul(x, c_w) }"
    )
    assert_leaves(FUSE_CONV_AFFINE, body, "a copy would be large")


def test_a_constant_divided_by_the_convolution_is_left_alone():
    body = (
        "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] c_k)"
        " => (float[1,4,6,6] y) { h = Conv(x, c_w)  y = Div(c_k, h) }"
    )
    assert_leaves(FUSE_CONV_AFFINE, body, "")


@settings(max_examples=30, deadline=None, print_blob=True)
@given(
    group=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_any_convolution_keeps_its_output(group, per_group, kernel, stride, dilation, pads):
    inputs, outputs = group * per_group[0], group * per_group[1]
    attributes = f"group={group}, strides=[{stride},{stride}], dilations=[{dilation},{dilation}], pads={list(pads)}"
    model = model_of(
        f"""(float[2,{inputs},7,6] x, float[{outputs},{per_group[0]},{kernel},{kernel}] c_w, float[{outputs},1,1] c_s,
        float[1,{outputs},1,1] c_t) => (float[A,B,C,D] y)
        {{ a = Conv<{attributes}>(x, c_w)  b = Mul(a, c_s)  y = Sub(c_t, b) }}"""
    )
    wanted = run(model)
    assert FUSE_CONV_AFFINE(model).modified
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert_close(wanted, run(model))
    assert not FUSE_CONV_AFFINE(model).modified
