from __future__ import annotations

import math

import numpy as np
import pytest
from fusion_helpers import assert_fuses, assert_leaves

from compiler.passes.fuse_gelu import FUSE_GELU

HEAD = "(float[N,4] x, float c_r, float c_1, float c_h) => (float[N,4] y)"
ERF = {"c_r": math.sqrt(2), "c_1": 1.0, "c_h": 0.5}
GATE = "a = Div(x, c_r)  e = Erf(a)  g = Add(e, c_1)"
ORDERS = (
    "p = Mul(x, g)  y = Mul(p, c_h)",
    "p = Mul(g, x)  y = Mul(c_h, p)",
    "p = Mul(x, c_h)  y = Mul(p, g)",
    "p = Mul(c_h, x)  y = Mul(g, p)",
    "p = Mul(c_h, g)  y = Mul(x, p)",
    "p = Mul(g, c_h)  y = Mul(p, x)",
)
TANH_HEAD = "(float[N,4] x, float c_r, float c_1, float c_h, float c_s, float c_3) => (float[N,4] y)"
TANH = {"c_r": math.sqrt(2 / math.pi), "c_1": 1.0, "c_h": 0.5, "c_s": 0.044715, "c_3": 3.0}
TANH_GATE = "s = Mul(c_s, q)  i = Add(x, s)  m = Mul(i, c_r)  t = Tanh(m)  g = Add(c_1, t)"


def numbers(values: dict[str, float], dtype=np.float32, shape=()) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, dtype) for name, value in values.items()}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("gate", [GATE, GATE.replace("Add(e, c_1)", "Add(c_1, e)"), GATE.replace("Div(x", "Mul(x")])
def test_the_erf_form_becomes_gelu_in_every_order(order, gate):
    values = ERF | ({"c_r": math.sqrt(0.5)} if "Mul(x, c_r" in gate else {})
    after = '(float[N,4] x) => (float[N,4] y) { y = Gelu<approximate="none">(x) }'
    assert_fuses(FUSE_GELU, f"{HEAD} {{ {gate} {order} }}", after, opset=20, values=numbers(values))


@pytest.mark.parametrize("order", ORDERS[:3])
@pytest.mark.parametrize("cube", ["q = Pow(x, c_3)", "w = Mul(x, x)  q = Mul(x, w)", "w = Mul(x, x)  q = Mul(w, x)"])
def test_the_tanh_form_becomes_gelu(order, cube):
    after = '(float[N,4] x) => (float[N,4] y) { y = Gelu<approximate="tanh">(x) }'
    text = f"{TANH_HEAD} {{ {cube} {TANH_GATE} {order} }}"
    assert_fuses(FUSE_GELU, text, after, opset=20, values=numbers(TANH))


def test_half_precision_constants_of_one_element_are_accepted():
    before = f"{HEAD} {{ {GATE} {ORDERS[0]} }}".replace("float[", "float16[").replace("float c", "float16[1] c")
    after = '(float16[N,4] x) => (float16[N,4] y) { y = Gelu<approximate="none">(x) }'
    assert_fuses(FUSE_GELU, before, after, opset=20, values=numbers(ERF, np.float16, (1,)))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"c_r": 1.5}, "the divisor of x is 1.5"),
        ({"c_h": 0.4}, "the outer factor is 0.4"),
        ({"c_1": 2.0}, "the summand is 2"),
    ],
)
def test_other_constants_are_left_alone(change, reason):
    assert_leaves(FUSE_GELU, f"{HEAD} {{ {GATE} {ORDERS[0]} }}", reason, opset=20, values=numbers(ERF | change))


@pytest.mark.parametrize(
    "change, reason",
    [({"c_s": 0.05}, "the factor of x³"), ({"c_3": 2.0}, "the exponent"), ({"c_r": 1.0}, "the factor under tanh")],
)
def test_other_constants_of_the_tanh_form_are_left_alone(change, reason):
    text = f"{TANH_HEAD} {{ q = Pow(x, c_3) {TANH_GATE} {ORDERS[0]} }}"
    assert_leaves(FUSE_GELU, text, reason, opset=20, values=numbers(TANH | change))


def test_below_opset_20_the_form_stays_with_the_reason():
    text = f"{HEAD} {{ {GATE} {ORDERS[0]} }}"
    assert_leaves(FUSE_GELU, text, "Gelu needs opset 20; the model has 18", opset=18, values=numbers(ERF))


def test_a_constant_that_adds_dimensions_is_left_alone():
    text = f"{HEAD} {{ {GATE} {ORDERS[0]} }}".replace("float c_h", "float[1,1,1] c_h").replace("[N,4] y", "[1,N,4] y")
    values = numbers(ERF) | {"c_h": np.full((1, 1, 1), 0.5, np.float32)}
    assert_leaves(FUSE_GELU, text, "may add dimensions", opset=20, values=values)


def test_an_intermediate_value_that_is_read_elsewhere_keeps_the_form():
    text = f"{HEAD} {{ {GATE} {ORDERS[0]} }}".replace("y)", "y, float[N,4] g)", 1)
    assert_leaves(FUSE_GELU, text, "also a graph output", opset=20, values=numbers(ERF))
