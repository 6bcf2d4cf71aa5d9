from __future__ import annotations

from pass_cases import apply, assert_left_alone, assert_same

from compiler.passes.merge_transposes import MERGE_TRANSPOSES
from compiler.passes.values import ORIGIN_KEY


def test_two_transposes_become_one_with_the_product_of_the_permutations() -> None:
    model, result = apply(
        MERGE_TRANSPOSES,
        """g (float[N,2,3,4] x) => (float[N,4,2,3] y) {
        [a] t = Transpose<perm=[0,2,3,1]>(x)
        [b] y = Transpose<perm=[0,2,3,1]>(t) }""",
    )
    assert result.modified
    assert_same(model, "g (float[N,2,3,4] x) => (float[N,4,2,3] y) { y = Transpose<perm=[0,3,1,2]>(x) }")
    assert model.graph[0].metadata_props[ORIGIN_KEY].split("\n") == ["b", "a"]


def test_transposes_that_cancel_leave_an_identity_only_at_the_output() -> None:
    model, _ = apply(
        MERGE_TRANSPOSES,
        """g (float[N,2,3] x) => (float[N,2,3] y, float[N,2,3] z) {
        t = Transpose<perm=[0,2,1]>(x) u = Transpose<perm=[0,2,1]>(t) y = Relu(u) z = Transpose<perm=[0,1,2]>(x) }""",
    )
    assert_same(model, "g (float[N,2,3] x) => (float[N,2,3] y, float[N,2,3] z) { y = Relu(x) z = Identity(x) }")


def test_inner_transpose_that_others_read_stays() -> None:
    model, _ = apply(
        MERGE_TRANSPOSES,
        """g (float[N,2,3] x) => (float[N,3,2] t, float[3,N,2] y) {
        t = Transpose<perm=[0,2,1]>(x) y = Transpose<perm=[1,0,2]>(t) }""",
    )
    assert_same(
        model,
        """g (float[N,2,3] x) => (float[N,3,2] t, float[3,N,2] y) {
        t = Transpose<perm=[0,2,1]>(x) y = Transpose<perm=[2,0,1]>(x) }""",
    )


def test_reversal_without_perm_is_spelled_out_from_the_rank() -> None:
    model, _ = apply(
        MERGE_TRANSPOSES, "g (float[2,3] x) => (float[2,3] y) { t = Transpose(x) r = Transpose(t) y = Abs(r) }"
    )
    assert_same(model, "g (float[2,3] x) => (float[2,3] y) { y = Abs(x) }")


def test_single_transpose_that_moves_something_is_left_alone() -> None:
    assert_left_alone(MERGE_TRANSPOSES, "g (float[2,3] x) => (float[3,2] y) { y = Transpose<perm=[1,0]>(x) }")
