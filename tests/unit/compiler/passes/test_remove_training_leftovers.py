from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_fuses, assert_leaves, model_of

from compiler.passes.remove_training_leftovers import REMOVE_TRAINING_LEFTOVERS


@pytest.mark.parametrize(
    "opset, dropout",
    [
        (11, "d = Dropout<ratio=0.5>(x)"),
        (11, "d, m = Dropout(x)"),
        (13, "d = Dropout(x, c_r)"),
        (13, "d = Dropout(x, c_r, c_t)"),
        (22, "d, m = Dropout(x)"),
    ],
)
def test_dropout_at_inference_vanishes(opset, dropout):
    text = f"(float[N,4] x, float c_r, bool c_t) => (float[N,4] y) {{ {dropout}  y = Abs(d) }}"
    values = {"c_r": np.array(0.7, np.float32), "c_t": np.array(False)}
    model = model_of(text, opset=opset, values=values)
    assert REMOVE_TRAINING_LEFTOVERS(model).modified
    assert [node.op_type for node in model.graph] == ["Abs"]
    assert model.graph[0].inputs[0] is model.graph.inputs[0]
    assert not REMOVE_TRAINING_LEFTOVERS(model).modified


@pytest.mark.parametrize(
    "arithmetic, number",
    [
        ("Mul(x, c_k)", 1),
        ("Mul(c_k, x)", 1),
        ("Div(x, c_k)", 1),
        ("Add(x, c_k)", 0),
        ("Add(c_k, x)", 0),
        ("Sub(x, c_k)", 0),
        ("Pow(x, c_k)", 1),
    ],
)
@pytest.mark.parametrize("shape", ["", "[1]", "[1,4]", "[4]"])
def test_arithmetic_with_the_neutral_element_vanishes(arithmetic, number, shape):
    text = f"(float[N,4] x, float{shape} c_k) => (float[N,4] y) {{ a = {arithmetic}  y = Abs(a) }}"
    dims = [int(dim) for dim in shape.strip("[]").split(",") if dim]
    values = {"c_k": np.full(dims, number, np.float32)}
    model = model_of(text, values=values)
    assert REMOVE_TRAINING_LEFTOVERS(model).modified
    assert [node.op_type for node in model.graph] == ["Abs"]


def test_a_graph_output_keeps_its_name_behind_an_identity():
    before = "(float[N,4] x, float c_k) => (float[N,4] y) { a = Abs(x)  y = Mul(a, c_k) }"
    after = "(float[N,4] x) => (float[N,4] y) { a = Abs(x)  y = Identity(a) }"
    assert_fuses(REMOVE_TRAINING_LEFTOVERS, before, after, values={"c_k": np.array(1, np.float32)})


@pytest.mark.parametrize(
    "text, values, reason",
    [
        (
            "(float[N,4] x) => (float[N,4] y, bool[N,4] m) { d, m = Dropout(x)  y = Abs(d) }",
            {},
            "also read elsewhere",
        ),
        (
            "(float[N,4] x) => (float[N,4] y, bool[N,4] z) { d, m = Dropout(x)  y = Abs(d)  z = Not(m) }",
            {},
            "also read elsewhere",
        ),
        (
            "(float[N,4] x, float c_r, bool c_t) => (float[N,4] y) { d = Dropout(x, c_r, c_t)  y = Abs(d) }",
            {"c_t": np.array(True)},
            "training mode",
        ),
        (
            "(float[N,4] x, float c_r, bool t) => (float[N,4] y) { d = Dropout(x, c_r, t)  y = Abs(d) }",
            {},
            "training mode",
        ),
        (
            "(float[N,1] x, float[4] c_k) => (float[N,4] y) { y = Mul(x, c_k) }",
            {"c_k": np.ones(4, np.float32)},
            "may grow",
        ),
        (
            "(float[4] x, float[1,1] c_k) => (float[1,4] y) { y = Add(x, c_k) }",
            {"c_k": np.zeros((1, 1), np.float32)},
            "may grow",
        ),
        ("(float[N,4] x, float c_k) => (float[N,4] y) { y = Sub(c_k, x) }", {"c_k": np.array(0, np.float32)}, ""),
        ("(float[N,4] x, float c_k) => (float[N,4] y) { y = Mul(x, c_k) }", {"c_k": np.array(2, np.float32)}, ""),
        ("(float[N,4] x, float k) => (float[N,4] y) { y = Mul(x, k) }", {}, ""),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, values, reason):
    assert_leaves(REMOVE_TRAINING_LEFTOVERS, text, reason, values=values)
