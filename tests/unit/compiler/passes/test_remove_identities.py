from __future__ import annotations

import pytest
from pass_cases import apply, assert_left_alone, assert_same

from compiler.passes.remove_identities import REMOVE_IDENTITIES


@pytest.mark.parametrize(
    "node",
    [
        "Identity(x)",
        "Concat<axis=0>(x)",
        "Sum(x)",
        "Max(x)",
        "Mul(x, one)",
        "Mul(one, x)",
        "Div(x, one)",
        "Add(x, zero)",
        "Add(zero, x)",
        "Sub(x, zero)",
        "Pad(x, nothing)",
    ],
)
def test_node_that_gives_its_input_back_is_gone(node: str) -> None:
    constants = "<float one = {1.0}, float[1,1] zero = {0.0}, int64[4] nothing = {0,0,0,0}>"
    model, result = apply(
        REMOVE_IDENTITIES, f"g (float[N,3] x) => (float[N,3] y) {constants} {{ a = {node} y = Relu(a) }}"
    )
    assert result.modified
    assert_same(model, f"g (float[N,3] x) => (float[N,3] y) {constants} {{ y = Relu(x) }}")


@pytest.mark.parametrize(
    "node",
    [
        "Mul(x, two)",
        "Div(one, x)",
        "Sub(zero, x)",
        "Add(x, two)",
        "Concat<axis=0>(x, x)",
        "Pad(x, some)",
    ],
)
def test_node_that_changes_its_input_is_left_alone(node: str) -> None:
    constants = "<float one = {1.0}, float zero = {0.0}, float two = {2.0}, int64[4] some = {0,1,0,0}>"
    assert_left_alone(REMOVE_IDENTITIES, f"g (float[N,3] x) => (float[A,B] y) {constants} {{ a = {node} y = Relu(a) }}")


def test_neutral_number_that_adds_a_dimension_is_left_alone() -> None:
    assert_left_alone(
        REMOVE_IDENTITIES, "g (float[3] x) => (float[1,3] y) <float[1,1] one = {1.0}> { a = Mul(x, one) y = Relu(a) }"
    )


def test_neutral_number_that_the_caller_may_override_is_left_alone() -> None:
    assert_left_alone(
        REMOVE_IDENTITIES,
        "g (float[3] x, float[1] one) => (float[3] y) <float[1] one = {1.0}> { a = Mul(x, one) y = Relu(a) }",
    )


def test_value_in_front_takes_over_the_name_of_the_output() -> None:
    model, _ = apply(REMOVE_IDENTITIES, "g (float[3] x) => (float[3] y) { a = Relu(x) b = Abs(a) y = Identity(a) }")
    assert_same(model, "g (float[3] x) => (float[3] y) { y = Relu(x) b = Abs(y) }")


def test_identity_stays_between_input_and_output() -> None:
    assert_left_alone(REMOVE_IDENTITIES, "g (float[3] x) => (float[3] y) { y = Identity(x) }")


def test_identity_stays_between_two_outputs() -> None:
    assert_left_alone(REMOVE_IDENTITIES, "g (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Identity(y) }")


def test_neutral_product_before_an_output_becomes_an_identity() -> None:
    model, _ = apply(REMOVE_IDENTITIES, "g (float[3] x) => (float[3] y) <float one = {1.0}> { [m] y = Mul(x, one) }")
    assert_same(model, "g (float[3] x) => (float[3] y) <float one = {1.0}> { y = Identity(x) }")
    assert model.graph[0].name == "m"


def test_branch_that_gives_back_an_outer_value_keeps_its_identity() -> None:
    assert_left_alone(
        REMOVE_IDENTITIES,
        """g (float[3] x, bool c) => (float[3] y) { a = Relu(x)
        y = If(c) <then_branch = t () => (float[3] p) { p = Identity(a) },
                   else_branch = e () => (float[3] q) { q = Neg(a) }> }""",
    )
