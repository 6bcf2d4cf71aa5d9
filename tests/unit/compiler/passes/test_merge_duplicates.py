from __future__ import annotations

from pass_cases import apply, assert_left_alone, assert_same, parse

from compiler.passes.merge_duplicates import MERGE_DUPLICATES


def test_equal_nodes_with_equal_constants_become_one() -> None:
    model, result = apply(
        MERGE_DUPLICATES,
        """g (float[N,2] x) => (float[N,2] y) <float[2] c = {1,2}, float[2] d = {1,2}>
        { a = Mul(x, c) b = Mul(x, d) p = Relu(a) q = Relu(b) y = Add(p, q) }""",
    )
    assert result.modified
    assert_same(
        model,
        "g (float[N,2] x) => (float[N,2] y) <float[2] c = {1,2}> { a = Mul(x, c) p = Relu(a) y = Add(p, p) }",
    )


def test_second_of_two_equal_nodes_hands_its_output_name_to_the_first() -> None:
    model, _ = apply(
        MERGE_DUPLICATES, "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) z = Abs(a) y = Relu(x) }"
    )
    assert_same(model, "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Abs(y) }")


def test_two_graph_outputs_stay_two_with_the_reason() -> None:
    result = assert_left_alone(
        MERGE_DUPLICATES, "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }"
    )
    assert result.notes == ("Relu:z: equals Relu:y, but both compute graph outputs",)


def test_other_attributes_are_another_node() -> None:
    assert_left_alone(
        MERGE_DUPLICATES,
        "g (float[2] x) => (float[2] y) { a = Elu<alpha=0.5>(x) b = Elu<alpha=0.25>(x) y = Add(a, b) }",
    )


def test_constants_that_differ_in_sign_of_zero_or_type_stay_apart() -> None:
    assert_left_alone(
        MERGE_DUPLICATES,
        """g (float[1] x) => (float[1] y) <float[1] p = {0.0}, float[1] n = {-0.0}>
        { a = Div(x, p) b = Div(x, n) y = Max(a, b) }""",
    )


def test_constant_that_the_caller_may_override_stays() -> None:
    assert_left_alone(
        MERGE_DUPLICATES,
        """g (float[2] x, float[2] c) => (float[2] y) <float[2] c = {1,2}, float[2] d = {1,2}>
        { a = Mul(x, c) b = Add(a, d) y = Relu(b) }""",
    )


def test_random_numbers_are_drawn_twice() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) { a = RandomNormalLike(x) b = RandomNormalLike(x)
        c = Bernoulli(x) d = Bernoulli(x) s = Add(a, b) t = Add(c, d) y = Add(s, t) }"""
    )
    assert not MERGE_DUPLICATES(model).modified


def test_dropout_that_may_train_is_left_alone() -> None:
    model = parse(
        """g (float[2] x, bool t) => (float[2] y) <float r = {0.5}>
        { a = Dropout(x, r, t) b = Dropout(x, r, t) y = Add(a, b) }"""
    )
    assert not MERGE_DUPLICATES(model).modified


def test_missing_outputs_tell_nodes_apart() -> None:
    text = """g (float[4] x) => (float[2] y, int64[2] i) <int64[1] k = {2}>
        { y, i = TopK(x, k) }"""
    assert_left_alone(MERGE_DUPLICATES, text)


def test_duplicates_inside_a_branch_are_merged_there() -> None:
    model, _ = apply(
        MERGE_DUPLICATES,
        """g (float[3] x, bool c) => (float[3] y) {
        y = If(c) <then_branch = t () => (float[3] p) { a = Abs(x) b = Abs(x) p = Add(a, b) },
                   else_branch = e () => (float[3] q) { q = Abs(x) }> }""",
    )
    assert sorted(node.op_type for node in model.graph.all_nodes()) == ["Abs", "Abs", "Add", "If"]
