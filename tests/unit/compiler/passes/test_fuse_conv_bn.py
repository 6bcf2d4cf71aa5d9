from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fusion_helpers import assert_close, assert_fuses, assert_leaves, model_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.fuse_conv_bn import FUSE_CONV_BN

PARAMETERS = "float[C] c_g, float[C] c_o, float[C] c_m, float[C] c_v"


def parameters(channels: int) -> str:
    return PARAMETERS.replace("C]", f"{channels}]")


def variance(channels: int, dtype=np.float32) -> dict[str, np.ndarray]:
    return {"c_v": np.linspace(0.5, 2.0, channels).astype(dtype)}


@pytest.mark.parametrize("opset", [11, 13, 14, 15, 18])
@pytest.mark.parametrize("constant_nodes", [False, True])
def test_normalization_vanishes_in_the_convolution(opset, constant_nodes):
    before = f"""(float[N,3,8,8] x, float[4,3,3,3] c_w, {parameters(4)}) => (float[N,4,8,8] y)
        {{ h = Conv<pads=[1,1,1,1]>(x, c_w)  y = BatchNormalization<epsilon=0.01>(h, c_g, c_o, c_m, c_v) }}"""
    after = """(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4] c_b) => (float[N,4,8,8] y)
        { y = Conv<pads=[1,1,1,1]>(x, c_w, c_b) }"""
    assert_fuses(FUSE_CONV_BN, before, after, opset=opset, values=variance(4), constant_nodes=constant_nodes)


def test_normalization_vanishes_in_a_transposed_convolution_with_groups():
    before = f"""(float[1,4,5,5] x, float[4,3,2,2] c_w, float[6] c_b, {parameters(6)}) => (float[1,6,6,6] y)
        {{ h = ConvTranspose<group=2>(x, c_w, c_b)  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }}"""
    after = """(float[1,4,5,5] x, float[4,3,2,2] c_w, float[6] c_b) => (float[1,6,6,6] y)
        { y = ConvTranspose<group=2>(x, c_w, c_b) }"""
    assert_fuses(FUSE_CONV_BN, before, after, values=variance(6))


@pytest.mark.parametrize("product", ["Gemm(x, c_w)", "MatMul(x, c_w)"])
def test_normalization_vanishes_in_a_product(product):
    before = f"""(float[N,4] x, float[4,5] c_w, {parameters(5)}) => (float[N,5] y)
        {{ h = {product}  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }}"""
    after = "(float[N,4] x, float[4,5] c_w, float[5] c_b) => (float[N,5] y) { y = Gemm(x, c_w, c_b) }"
    assert_fuses(FUSE_CONV_BN, before, after, values=variance(5))


def test_parameters_of_another_type_are_rounded_to_the_weights():
    before = """(float16[N,3,8,8] x, float16[4,3,3,3] c_w, float16[4] c_g, float16[4] c_o, float[4] c_m, float[4] c_v)
        => (float16[N,4,6,6] y) { h = Conv(x, c_w)  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }"""
    model = model_of(before, values=variance(4))
    assert FUSE_CONV_BN(model).modified
    names = [value.name for value in model.graph[-1].inputs[1:]]
    assert [model.graph.initializers[name].dtype.name for name in names] == ["FLOAT16", "FLOAT16"]


def test_normalization_before_a_convolution_without_padding_vanishes():
    before = f"""(float[N,3,8,8] x, float[4,3,3,3] c_w, {parameters(3)}) => (float[N,4,6,6] y)
        {{ h = BatchNormalization(x, c_g, c_o, c_m, c_v)  y = Conv(h, c_w) }}"""
    after = "(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4] c_b) => (float[N,4,6,6] y) { y = Conv(x, c_w, c_b) }"
    assert_fuses(FUSE_CONV_BN, before, after, values=variance(3))


CONV_BN = f"""(float[1,3,8,8] x, float[4,3,3,3] c_w, {parameters(4)}) => (float[1,4,6,6] y)
    {{ h = Conv(x, c_w)  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }}"""


@pytest.mark.parametrize(
    "body, opset, reason",
    [
        (
            CONV_BN.replace("y = Batch", "y, m, v = Batch").replace("ization(", "ization<training_mode=1>("),
            15,
            "training mode",
        ),
        (CONV_BN.replace("y = Batch", "y, m, v, p, q = Batch"), 11, "training mode"),
        (CONV_BN.replace("[4] c_m", "[4] m").replace("c_m, c_v)", "m, c_v)"), 18, "'m' is not constant"),
        (CONV_BN.replace("c_w", "w"), 18, "the weight 'w' is not constant"),
        (CONV_BN.replace("[1,4,6,6] y)", "[1,4,6,6] y, float[1,4,6,6] h)"), 18, "also a graph output"),
        (
            f"""(float[1,3,8,8] x, float[4,3,3,3] c_w, {parameters(3)}) => (float[1,4,8,8] y)
            {{ h = BatchNormalization(x, c_g, c_o, c_m, c_v)  y = Conv<pads=[1,1,1,1]>(h, c_w) }}""",
            18,
            "pads with zeros",
        ),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(body, opset, reason):
    assert_leaves(FUSE_CONV_BN, body, reason, opset=opset, values={"c_v": np.ones(3 if "[3] c_v" in body else 4, "f")})


def test_a_negative_variance_is_left_alone():
    assert_leaves(FUSE_CONV_BN, CONV_BN, "not finite", values={"c_v": np.full(4, -1.0, np.float32)})


@settings(max_examples=30, deadline=None, print_blob=True)
@given(
    group=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    has_bias=st.booleans(),
)
def test_any_convolution_keeps_its_output(group, per_group, kernel, stride, dilation, pads, has_bias):
    inputs, outputs = group * per_group[0], group * per_group[1]
    attributes = f"group={group}, strides=[{stride},{stride}], dilations=[{dilation},{dilation}], pads={list(pads)}"
    declared, used = (f"float[{outputs}] c_b,", ", c_b") if has_bias else ("", "")
    body = f"""(float[2,{inputs},7,6] x, float[{outputs},{per_group[0]},{kernel},{kernel}] c_w, {declared}
        {parameters(outputs)}) => (float[A,B,C,D] y)
        {{ h = Conv<{attributes}>(x, c_w{used})  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }}"""
    model = model_of(body, values=variance(outputs))
    wanted = run(model)
    assert FUSE_CONV_BN(model).modified
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert_close(wanted, run(model))


@pytest.mark.parametrize("sizes", ["2,5,5", "N,5,5", "2,3,5,5", "2,5,4,5"])
@pytest.mark.parametrize("shift", [False, True])
def test_normalization_behind_a_product_is_folded_only_where_the_channels_are_axis_1(sizes, shift):
    """BatchNormalization scales axis 1, MatMul puts its channels last; equal sizes must not mislead."""
    dims = sizes.split(",")
    channels = int(dims[1])
    values = variance(channels) | ({} if shift else {name: np.zeros(channels, np.float32) for name in ("c_o", "c_m")})
    text = f"""(float[{sizes}] x, float[5,5] c_w, {parameters(channels)}) => (float[{sizes}] y)
        {{ h = MatMul(x, c_w)  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }}"""
    assert_leaves(FUSE_CONV_BN, text, "not known to lie on axis 1", values=values)


@pytest.mark.parametrize(("x", "y"), [("2,5", "2,5"), ("N,5", "N,5")])
def test_normalization_without_a_shift_behind_a_product_of_rank_2_is_folded(x, y):
    values = variance(5) | {name: np.zeros(5, np.float32) for name in ("c_o", "c_m")}
    before = f"""(float[{x}] x, float[5,5] c_w, {parameters(5)}) => (float[{y}] y)
        {{ h = MatMul(x, c_w)  y = BatchNormalization(h, c_g, c_o, c_m, c_v) }}"""
    assert_fuses(
        FUSE_CONV_BN,
        before,
        f"(float[{x}] x, float[5,5] c_w) => (float[{y}] y) {{ y = MatMul(x, c_w) }}",
        values=values,
    )


def test_a_layer_without_input_channels_is_left_alone() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 18]>
g (float[1, 0, 4, 4] x) => (float[1, 3, 6, 4] y)
<float[0, 3, 3, 1] w = {}, float[3] s = {1.0, 2.0, 3.0}, float[3] b = {0.0, 0.0, 0.0}> {
    c = ConvTranspose <kernel_shape = [3, 1]> (x, w)
    y = BatchNormalization (c, s, b, b, s)
}""")
    result = FUSE_CONV_BN(model)
    assert not result.modified
    assert any("is empty" in note for note in result.notes)
