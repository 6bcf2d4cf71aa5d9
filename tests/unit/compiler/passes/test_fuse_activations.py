from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_close, assert_fuses, assert_leaves, model_of, run

from compiler.passes.fuse_activations import FUSE_ACTIVATIONS
from compiler.passes.values import scalar_of

ONE = "(float[N,4] x) => (float[N,4] y)"
BOUNDED = "(float[N,4] x, float c_a, float c_b, float c_c, float c_d) => (float[N,4] y)"
HARD = {"c_a": 0.0, "c_b": 6.0, "c_c": 3.0, "c_d": 6.0}
SLOPED = "(float[N,4] x, float%s c_k, float c_z) => (float[N,4] y)"
ZERO = {"c_z": 0.0}


def numbers(values: dict[str, float], dtype=np.float32) -> dict[str, np.ndarray]:
    return {name: np.array(value, dtype) for name, value in values.items()}


@pytest.mark.parametrize(
    "a, b, c, d, expected",
    [
        (-2, 2, -1, 1, (-1, 1)),
        (-1, 1, -2, 2, (-1, 1)),
        (0, 1, 2, 3, (2, 2)),
        (2, 3, 0, 1, (1, 1)),
        (-1, 2, 0, 3, (0, 2)),
    ],
)
def test_a_clip_after_a_clip_clips_once_even_where_the_intervals_do_not_meet(a, b, c, d, expected):
    text = BOUNDED + "{ h = Clip(x, c_a, c_b)  y = Clip(h, c_c, c_d) }"
    model = model_of(text, values=numbers({"c_a": a, "c_b": b, "c_c": c, "c_d": d}))
    wanted = run(model)
    assert FUSE_ACTIVATIONS(model).modified
    assert [node.op_type for node in model.graph] == ["Clip"]
    assert tuple(scalar_of(value) for value in model.graph[0].inputs[1:]) == expected
    assert_close(wanted, run(model))
    assert not FUSE_ACTIVATIONS(model).modified


@pytest.mark.parametrize("nodes", ["h = Relu(x)  y = Clip(h, c_a, c_b)", "h = Clip(x, c_a, c_b)  y = Relu(h)"])
@pytest.mark.parametrize("low, high", [(-1.0, 2.0), (0.5, 6.0), (-3.0, -1.0)])
def test_relu_and_clip_become_one_clip(nodes, low, high):
    after = "(float[N,4] x, float c_a, float c_b) => (float[N,4] y) { y = Clip(x, c_a, c_b) }"
    assert_fuses(FUSE_ACTIVATIONS, BOUNDED + f"{{ {nodes} }}", after, values=numbers({"c_a": low, "c_b": high}))


def test_a_clip_without_an_upper_bound_stays_without_one():
    after = "(float[N,4] x, float c_a) => (float[N,4] y) { y = Clip(x, c_a) }"
    assert_fuses(FUSE_ACTIVATIONS, BOUNDED + "{ h = Clip(x, c_a)  y = Relu(h) }", after, values=numbers({"c_a": 1.0}))


def test_relu_twice_is_relu_once():
    assert_fuses(FUSE_ACTIVATIONS, ONE + "{ h = Relu(x)  y = Relu(h) }", ONE + "{ y = Relu(x) }")


@pytest.mark.parametrize(
    "nodes",
    [
        "h = HardSigmoid<alpha=0.16666667, beta=0.5>(x)  y = Mul(x, h)",
        "h = HardSigmoid<alpha=0.16666667, beta=0.5>(x)  y = Mul(h, x)",
        "t = Add(x, c_c)  h = Clip(t, c_a, c_b)  p = Mul(x, h)  y = Div(p, c_d)",
        "t = Add(c_c, x)  h = Clip(t, c_a, c_b)  p = Mul(h, x)  y = Div(p, c_d)",
        "t = Add(x, c_c)  h = Clip(t, c_a, c_b)  p = Div(h, c_d)  y = Mul(x, p)",
        "t = Add(x, c_c)  h = Clip(t, c_a, c_b)  p = Div(x, c_d)  y = Mul(p, h)",
    ],
)
def test_the_spelled_out_hard_swish_becomes_one_node(nodes):
    assert_fuses(FUSE_ACTIVATIONS, BOUNDED + f"{{ {nodes} }}", ONE + "{ y = HardSwish(x) }", values=numbers(HARD))


@pytest.mark.parametrize("product", ["Mul(x, s)", "Mul(s, x)"])
def test_x_times_its_sigmoid_becomes_swish_since_opset_24(product):
    model = model_of(ONE + f"{{ s = Sigmoid(x)  y = {product} }}", opset=24)
    assert FUSE_ACTIVATIONS(model).modified
    assert [node.op_type for node in model.graph] == ["Swish"]
    assert_leaves(FUSE_ACTIVATIONS, ONE + f"{{ s = Sigmoid(x)  y = {product} }}", "Swish needs opset 24", opset=23)


FORMS = [
    "r = Relu(x)  n = Neg(x)  p = Relu(n)  q = Mul(c_k, p)  y = Sub(r, q)",
    "r = Relu(x)  n = Neg(x)  p = Relu(n)  q = Mul(p, c_k)  y = Add(q, r)",
    "q = Mul(c_k, x)  y = Max(x, q)",
    "q = Mul(x, c_k)  y = Max(q, x)",
    "b = Greater(x, c_z)  q = Mul(x, c_k)  y = Where(b, x, q)",
    "b = GreaterOrEqual(x, c_z)  q = Mul(x, c_k)  y = Where(b, x, q)",
    "b = Less(x, c_z)  q = Mul(c_k, x)  y = Where(b, q, x)",
    "b = LessOrEqual(x, c_z)  q = Mul(c_k, x)  y = Where(b, q, x)",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_slope_per_element_becomes_prelu(form):
    values = numbers(ZERO) | {"c_k": np.array([0.1, 0.2, 0.5, 1.0], np.float32)}
    after = "(float[N,4] x, float[4] c_k) => (float[N,4] y) { y = PRelu(x, c_k) }"
    assert_fuses(FUSE_ACTIVATIONS, SLOPED % "[4]" + f"{{ {form} }}", after, values=values)


@pytest.mark.parametrize("form", FORMS)
def test_one_slope_becomes_leaky_relu(form):
    alpha = -0.25 if "Add" in form else 0.25
    after = ONE + f"{{ y = LeakyRelu<alpha={alpha}>(x) }}"
    assert_fuses(FUSE_ACTIVATIONS, SLOPED % "" + f"{{ {form} }}", after, values=numbers(ZERO | {"c_k": 0.25}))


@pytest.mark.parametrize(
    "text, values, reason",
    [
        (BOUNDED + "{ h = Clip(x, c_a, c_b)  y = Relu(h) }", {"c_a": 2.0, "c_b": 1.0}, "not in order"),
        (BOUNDED.replace("c_a", "a") + "{ h = Clip(x, a, c_b)  y = Relu(h) }", {}, "not constant"),
        (BOUNDED.replace("y)", "y, float[N,4] h)") + "{ h = Relu(x)  y = Clip(h, c_a, c_b) }", HARD, "a graph output"),
        (ONE + "{ h = HardSigmoid<alpha=0.2, beta=0.5>(x)  y = Mul(x, h) }", {}, "not 1/6 and 1/2"),
        (
            BOUNDED + "{ t = Add(x, c_c)  h = Clip(t, c_a, c_b)  p = Mul(x, h)  y = Div(p, c_d) }",
            HARD | {"c_b": 5.0},
            "0 and 6",
        ),
        (
            BOUNDED + "{ t = Add(x, c_c)  h = Clip(t, c_a, c_b)  p = Mul(x, h)  y = Div(p, c_d) }",
            HARD | {"c_c": 2.0},
            "the summand is 2",
        ),
        (
            BOUNDED + "{ t = Add(x, c_c)  h = Clip(t, c_a, c_b)  p = Mul(x, h)  y = Div(p, c_d) }",
            HARD | {"c_d": 5.0},
            "the divisor is 5",
        ),
        (SLOPED % "" + f"{{ {FORMS[2]} }}", {"c_k": 1.5}, "outside 0 to 1"),
        (SLOPED % "" + f"{{ {FORMS[4]} }}", {"c_k": 0.5, "c_z": 1.0}, "compared with is 1"),
        (SLOPED.replace("c_k", "k") % "" + f"{{ {FORMS[2].replace('c_k', 'k')} }}", {}, "the slope is not constant"),
        ("(float[N,1] x, float[4] c_k) => (float[N,4] y)" + f"{{ {FORMS[0]} }}", {}, "may grow"),
        ("(float[N,4] x, float[4] z) => (float[N,4] y) { s = Sigmoid(z)  y = Mul(x, s) }", {}, ""),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, values, reason):
    assert_leaves(FUSE_ACTIVATIONS, text, reason, values=numbers(values))


def test_hard_swish_needs_opset_14():
    text = ONE + "{ h = HardSigmoid<alpha=0.16666667, beta=0.5>(x)  y = Mul(x, h) }"
    assert_leaves(FUSE_ACTIVATIONS, text, "HardSwish needs opset 14", opset=13)
