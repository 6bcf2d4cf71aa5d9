from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_close, assert_fuses, assert_leaves, model_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.fold_input_normalization import FOLD_INPUT_NORMALIZATION

FUSED = "(float[N,3,8,8] x, float[4,3,3,3] c_w, float[4] c_b) => (float[N,4,6,6] y) { y = Conv(x, c_w, c_b) }"
PADDED = "Conv<pads=[1,1,1,1]>"


def body(nodes: str, *, constant: str = "1,3,1,1", x: str = "N,3,8,8", y: str = "N,4,6,6") -> str:
    return f"(float[{x}] x, float[4,3,3,3] c_w, float[{constant}] c_k) => (float[{y}] y) {{ {nodes} }}"


@pytest.mark.parametrize("constant", ["1,3,1,1", "3,1,1", "1"])
@pytest.mark.parametrize("shift", ["Sub(x, c_k)", "Sub(c_k, x)", "Add(x, c_k)", "Add(c_k, x)"])
def test_a_shift_vanishes_in_a_convolution_without_padding(shift, constant):
    assert_fuses(FOLD_INPUT_NORMALIZATION, body(f"h = {shift}  y = Conv(h, c_w)", constant=constant), FUSED)


@pytest.mark.parametrize("conv, side", [("Conv", 6), (PADDED, 8), ('Conv<auto_pad="SAME_UPPER">', 8)])
@pytest.mark.parametrize("scale", ["Mul(x, c_k)", "Mul(c_k, x)", "Div(x, c_k)"])
def test_a_scale_vanishes_in_any_convolution(scale, conv, side):
    y = f"N,4,{side},{side}"
    after = f"(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[{y}] y) {{ y = {conv}(x, c_w) }}"
    assert_fuses(FOLD_INPUT_NORMALIZATION, body(f"h = {scale}  y = {conv}(h, c_w)", y=y), after)


def test_mean_and_deviation_vanish_together():
    nodes = "a = Sub(x, c_k)  b = Div(a, c_k)  y = Conv(b, c_w)"
    assert_fuses(FOLD_INPUT_NORMALIZATION, body(nodes), FUSED)


def test_of_mean_and_deviation_before_a_padded_convolution_only_the_deviation_vanishes():
    nodes = f"a = Sub(x, c_k)  b = Div(a, c_k)  y = {PADDED}(b, c_w)"
    after = body(f"a = Sub(x, c_k)  y = {PADDED}(a, c_w)", y="N,4,8,8")
    assert_fuses(FOLD_INPUT_NORMALIZATION, body(nodes, y="N,4,8,8"), after)


@pytest.mark.parametrize(
    "text, reason",
    [
        (body(f"h = Sub(x, c_k)  y = {PADDED}(h, c_w)", y="N,4,8,8"), "pads with zeros"),
        (body('h = Sub(x, c_k)  y = Conv<auto_pad="SAME_LOWER">(h, c_w)', y="N,4,8,8"), "pads with zeros"),
        (body("h = Mul(x, c_k)  y = Conv(h, c_w)", constant="1,3,8,8"), "not one number per channel"),
        (body("h = Mul(x, c_k)  y = Conv(h, c_w)", x="N,1,8,8"), "not known to have 3 channels"),
        (body("h = Mul(x, c_k)  y = Conv(h, c_w)", x="3,8,8", y="1,4,6,6"), "not known to have 3 channels"),
        (body("h = Mul(x, c_k)  y = Conv(h, c_w)", x="N,C,8,8"), "not known to have 3 channels"),
        (body("h = Div(c_k, x)  y = Conv(h, c_w)"), "no affine map"),
        (body("h = Mul(x, x)  y = Conv(h, c_w)"), "the operand 'x' is not constant"),
        (body("h = Mul(x, c_k)  y = Conv(h, c_w)").replace("c_w", "w"), "the weight 'w' is not constant"),
        (body("h = Mul(x, c_k)  a = Conv(h, c_w)  b = Conv(h, c_w)  y = Add(a, b)"), "is also read by"),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, reason):
    assert_leaves(FOLD_INPUT_NORMALIZATION, text, reason)


def test_a_division_by_zero_is_left_alone():
    text = body("h = Div(x, c_k)  y = Conv(h, c_w)")
    assert_leaves(FOLD_INPUT_NORMALIZATION, text, "not finite", values={"c_k": np.zeros((1, 3, 1, 1), np.float32)})


@settings(max_examples=30, deadline=None, print_blob=True)
@given(
    group=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.one_of(st.just((0, 0, 0, 0)), st.tuples(*[st.integers(0, 2)] * 4)),
)
def test_any_convolution_keeps_its_output_and_gives_up_shifts_only_to_padding(
    group, per_group, kernel, stride, dilation, pads
):
    inputs, outputs = group * per_group[0], group * per_group[1]
    attributes = f"group={group}, strides=[{stride},{stride}], dilations=[{dilation},{dilation}], pads={list(pads)}"
    model = model_of(
        f"""(float[2,{inputs},7,6] x, float[{outputs},{per_group[0]},{kernel},{kernel}] c_w, float[{inputs},1,1] c_s,
        float[1,{inputs},1,1] c_t) => (float[A,B,C,D] y)
        {{ a = Sub(x, c_t)  b = Mul(a, c_s)  y = Conv<{attributes}>(b, c_w) }}"""
    )
    wanted = run(model)
    assert FOLD_INPUT_NORMALIZATION(model).modified
    assert [node.op_type for node in model.graph] == (["Sub", "Conv"] if any(pads) else ["Conv"])
    assert_close(wanted, run(model))
    assert not FOLD_INPUT_NORMALIZATION(model).modified
