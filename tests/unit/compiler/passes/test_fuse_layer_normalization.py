from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_fuses, assert_leaves

from compiler.passes.fuse_layer_normalization import FUSE_LAYER_NORMALIZATION

EPSILON = np.array(1e-5, np.float32)
HEAD = "(float[N,5,6] x, float c_e, float c_2, int64[1] c_a, float[6] c_g, float[6] c_o) => (float[N,5,6] y)"
VALUES = {"c_e": EPSILON, "c_2": np.array(2, np.float32), "c_a": np.array([-1], np.int64)}
MEANS = {17: "ReduceMean<axes=[-1]>(%s)", 18: "ReduceMean(%s, c_a)"}
SQUARES = ("Mul(d, d)", "Pow(d, c_2)")
QUOTIENTS = ("n = Div(d, r)", "i = Reciprocal(r)  n = Mul(d, i)", "i = Reciprocal(r)  n = Mul(i, d)")
TAIL = "s = Mul(n, c_g)  y = Add(s, c_o)"
FUSED = """(float[N,5,6] x, float[6] c_g, float[6] c_o) => (float[N,5,6] y)
    { y = LayerNormalization<axis=-1, epsilon=0.00001>(x, c_g, c_o) }"""


def spelled(mean: str = MEANS[18], square: str = SQUARES[0], quotient: str = QUOTIENTS[0], tail: str = TAIL) -> str:
    first, second = mean % "x", mean % "q"
    start = f"m = {first}  d = Sub(x, m)  q = {square}  v = {second}  w = Add(v, c_e)  r = Sqrt(w)"
    return f"{{ {start}  {quotient}  {tail} }}"


@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("opset", [17, 18])
def test_the_spelled_out_form_becomes_one_node(opset, square, quotient):
    text = HEAD + spelled(MEANS[opset], square, quotient)
    assert_fuses(FUSE_LAYER_NORMALIZATION, text, FUSED, opset=opset, values=VALUES)


def test_scale_and_shift_are_optional_and_may_come_in_any_order():
    after = FUSED.replace(", float[6] c_o", "").replace(", c_o", "")
    assert_fuses(FUSE_LAYER_NORMALIZATION, HEAD + spelled(tail="y = Mul(c_g, n)"), after, values=VALUES)
    assert_fuses(FUSE_LAYER_NORMALIZATION, HEAD + spelled(quotient="", tail="y = Div(d, r)"), after, values=VALUES)


def test_several_last_dimensions_are_normalized_together():
    head = HEAD.replace("int64[1]", "int64[2]").replace("float[6]", "float[5,6]")
    values = VALUES | {"c_a": np.array([2, 1], np.int64)}
    after = FUSED.replace("float[6]", "float[5,6]").replace("axis=-1", "axis=-2")
    assert_fuses(FUSE_LAYER_NORMALIZATION, head + spelled(), after, values=values)


@pytest.mark.parametrize(
    "text, change, reason",
    [
        (HEAD + spelled(), {"c_a": np.array([1], np.int64)}, "not over the last ones"),
        (HEAD.replace("float[", "double[").replace("float ", "double ") + spelled(), {}, "computes in float32"),
        (
            HEAD.replace("float c_e", "float[6] c_e") + spelled(),
            {"c_e": np.ones(6, np.float32)},
            "not a constant number",
        ),
        (HEAD + spelled(square=SQUARES[1]), {"c_2": np.array(3, np.float32)}, "the exponent is 3"),
        (HEAD.replace("[N,5,6] x", "[N,5,K] x") + spelled(), {}, "no known size"),
        (
            HEAD + spelled().replace("v = ReduceMean(q, c_a)", "v = ReduceMean(q)"),
            {},
            "not known",
        ),
        (HEAD + spelled().replace("Sub(x, m)", "Sub(m, x)"), {}, ""),
        (HEAD.replace("y)", "y, float[N,5,1] v)") + spelled(), {}, "also a graph output"),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, change, reason):
    kind = np.float64 if "double" in text else np.float32
    values = {
        name: array if array.dtype == np.int64 else array.astype(kind) for name, array in (VALUES | change).items()
    }
    assert_leaves(FUSE_LAYER_NORMALIZATION, text, reason, values=values)


def test_below_opset_17_the_form_stays_with_the_reason():
    text = HEAD + spelled(MEANS[17])
    assert_leaves(FUSE_LAYER_NORMALIZATION, text, "needs opset 17", opset=13, values=VALUES)


def test_a_mean_that_drops_its_dimensions_is_left_alone():
    head = HEAD.replace("[N,5,6]", "[6,6]").replace("int64[1]", "int64[1]")
    text = head + spelled("ReduceMean<keepdims=0>(%s, c_a)")
    assert_leaves(FUSE_LAYER_NORMALIZATION, text, "does not keep its dimensions", values=VALUES)


def test_a_scale_of_another_shape_stays_outside():
    head = HEAD.replace("float[6] c_g", "float[5,6] c_g")
    after = """(float[N,5,6] x, float[6] c_1, float[5,6] c_g, float[6] c_o) => (float[N,5,6] y)
        { n = LayerNormalization<axis=-1, epsilon=0.00001>(x, c_1)  s = Mul(n, c_g)  y = Add(s, c_o) }"""
    assert_fuses(FUSE_LAYER_NORMALIZATION, head + spelled(), after, values=VALUES)
