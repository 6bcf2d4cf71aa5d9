"""For a target without If both branches are computed, and the right one is chosen."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import parse

from compiler.model.graph import check_model
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import run_unoptimized
from compiler.passes.select_branches import SelectBranches


def branches(then: str, other: str, *, condition: str = "c", name: str = "y", size: str = "2,4") -> str:
    return f"""{name} = If({condition}) <then_branch = t_{name} () => (float[{size}] p_{name}) {{ {then} }},
                                        else_branch = e_{name} () => (float[{size}] q_{name}) {{ {other} }}>"""


def selected(text: str) -> list[str]:
    """Operators afterwards; outputs are equal to the bit, whichever branch is taken."""
    model = parse(text)
    infer_shapes(model)
    positive = np.random.default_rng(0).random((2, 4)).astype(np.float32) + np.float32(0.1)
    expected = [run_unoptimized(model, {"x": sign * positive}) for sign in (1, -1)]
    assert SelectBranches(lambda node: node.op_type == "If")(model).modified
    check_model(model)
    for sign, outputs in zip((1, -1), expected, strict=True):
        for name, array in run_unoptimized(model, {"x": sign * positive}).items():
            np.testing.assert_array_equal(array, outputs[name])
    return [node.op_type for node in model.graph.all_nodes()]


HEAD = "g (float[2,4] x) => (float[2,4] y) <float zero = {0}, float[4] w = {1, 2, 3, 4}>"
CONDITIONS = {
    "scalar": "m = ReduceMax<keepdims = 0>(x) c = Greater(m, zero)",
    "of rank 2": "m = ReduceMax<keepdims = 1>(x) c = Greater(m, zero)",
}


@pytest.mark.parametrize("condition", list(CONDITIONS))
def test_a_condition_that_the_data_decide(condition: str) -> None:
    text = f"{HEAD} {{ {CONDITIONS[condition]} {branches('h = Mul(x, w) p_y = Neg(h)', 'h = Abs(x) q_y = Sqrt(h)')} }}"
    operators = selected(text)
    assert "If" not in operators and {"Neg", "Sqrt", "Where"} <= set(operators)


def test_nested_conditions_and_branches_that_hand_on_values() -> None:
    inner = branches("p_v = Neg(x)", "q_v = Identity(x)", condition="k", name="v")
    text = f"""{HEAD} {{ {CONDITIONS["scalar"]} k = Not(c)
        {branches(f"{inner} p_y = Mul(v, w)", "q_y = Identity(x)")} }}"""
    assert "If" not in selected(text)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("i = Cast<to = 7>(m) g = Gather<axis = 0>(w, i) p_y = Mul(x, g)", "Gather 'Gather:g' may fail"),
        ("p_y = RandomNormalLike(x)", "RandomNormalLike"),
    ],
)
def test_a_branch_that_may_fail_where_it_is_not_taken_stays(then: str, reason: str) -> None:
    model = parse(f"{HEAD} {{ {CONDITIONS['scalar']} {branches(then, 'q_y = Abs(x)')} }}")
    infer_shapes(model)
    result = SelectBranches(lambda node: node.op_type == "If")(model)
    assert not result.modified and reason in result.notes[0]


def test_branches_of_different_shapes_stay() -> None:
    text = f"""g (float[2,4] x) => (float[A,B] y) <float zero = {{0}}> {{ {CONDITIONS["scalar"]}
        y = If(c) <then_branch = t () => (float[A,B] p) {{ p = Transpose(x) }},
                   else_branch = e () => (float[C,D] q) {{ q = Abs(x) }}> }}"""
    model = parse(text)
    infer_shapes(model)
    result = SelectBranches(lambda node: node.op_type == "If")(model)
    assert not result.modified and "its branches give" in result.notes[0]


def test_branches_of_a_size_that_is_not_known_stay() -> None:
    """Both may give any number of rows: Where would broadcast one of them."""
    text = f"""g (float[2,4] x) => (float[A,B] y) <float zero = {{0}}> {{ {CONDITIONS["scalar"]}
        y = If(c) <then_branch = t () => (float[?,4] p) {{ k = NonZero(x) f = Cast<to = 1>(k) p = Transpose(f) }},
                   else_branch = e () => (float[?,4] q) {{ n = Neg(x) j = NonZero(n) d = Cast<to = 1>(j)
                                                           q = Transpose(d) }}> }}"""
    model = parse(text)
    infer_shapes(model)
    for node in model.graph:
        if node.op_type == "If":
            for name in ("then_branch", "else_branch"):
                node.attributes[name].as_graph().outputs[0].shape = ir.Shape([None, 2])
    assert not SelectBranches(lambda node: node.op_type == "If")(model).modified
