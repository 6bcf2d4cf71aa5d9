from __future__ import annotations

from pass_cases import apply, assert_left_alone, assert_same

from compiler.passes.merge_reshapes import MERGE_RESHAPES
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES


def test_of_two_reshapes_the_last_form_counts() -> None:
    model, _ = apply(
        MERGE_RESHAPES,
        """g (float[N,4,6] x) => (float[N,2,12] y) <int64[2] s = {-1,24}, int64[3] t = {-1,2,12}>
        { r = Reshape(x, s) y = Reshape(r, t) }""",
    )
    assert [node.op_type for node in model.graph] == ["Reshape"]
    assert [value.name for value in model.graph[0].inputs] == ["x", "t"]


def test_zero_that_means_a_static_size_is_spelled_out_in_a_shape_of_its_own() -> None:
    model, _ = apply(
        MERGE_RESHAPES,
        """g (float[4,6] x, float[6,N] z) => (float[3,8] y, float[6,N] w)
        <int64[2] s = {3,8}, int64[2] t = {0,-1}>
        { r = Reshape(x, s) [c] c = Relu(r) f = Flatten<axis=1>(x) y0 = Reshape(f, s) y = Add(y0, c)
        w = Reshape(z, t) }""",
    )
    assert "Flatten" not in [node.op_type for node in model.graph]
    assert model.graph.initializers["t"].const_value.numpy().tolist() == [0, -1]


def test_chain_that_ends_in_the_form_before_it_is_gone() -> None:
    constant = "<int64[1] one = {1}>"
    model, _ = apply(
        MERGE_RESHAPES,
        f"""g (float[N,4,6] x) => (float[N,4,6] y) {constant}
        {{ u = Unsqueeze(x, one) q = Squeeze(u, one) y = Relu(q) }}""",
    )
    REMOVE_DEAD_NODES(model)
    assert_same(model, "g (float[N,4,6] x) => (float[N,4,6] y) { y = Relu(x) }")


def test_zeros_for_every_size_keep_the_form_even_if_it_is_symbolic() -> None:
    model, _ = apply(
        MERGE_RESHAPES,
        "g (float[N,M,6] x) => (float[N,M,6] y) <int64[3] s = {0,0,-1}> { r = Reshape(x, s) y = Relu(r) }",
    )
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_zero_that_means_an_unknown_size_is_left_alone_with_the_reason() -> None:
    text = """g (float[N,M,6] x) => (float[A,B] y) <int64[3] s = {-1,2,3}, int64[2] t = {0,-1}>
        { r = Reshape(x, s) y = Reshape(r, t) }"""
    notes = assert_left_alone(MERGE_RESHAPES, text).notes
    assert notes == ("Reshape:y: takes over a size of 'r' that is not known",)


def test_reshape_by_a_computed_shape_is_left_alone() -> None:
    assert_left_alone(
        MERGE_RESHAPES,
        """g (float[N,4,6] x, float[A,B] z) => (float[A,B] y) <int64[2] s = {-1,24}>
        { n = Shape(z) m = Reshape(x, s) q = Shape(m) y = Reshape(m, q) }""",
    )


def test_forms_with_two_symbolic_sizes_are_not_taken_for_equal() -> None:
    assert_left_alone(
        MERGE_RESHAPES,
        "g (float[N,M] x, int64[2] s) => (float[N,M] y) { r = Reshape(x, s) y = Relu(r) }",
    )
