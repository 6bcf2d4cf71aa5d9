"""What shapes and constants decide is decided: the branch is taken in, nested ones too, with the same results."""

from __future__ import annotations

import itertools

import pytest
from pass_cases import parse

from compiler.model.graph import check_model, graph_digest
from compiler.passes.probe import make_probe
from compiler.passes.take_branches import TAKE_BRANCHES


def decided(text: str) -> list[str]:
    """Operators after the pass, which must keep the outputs to the bit and be done after one run."""
    model = parse(text)
    probe = make_probe(model)
    assert probe.expected is not None, probe.why
    interface = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    assert TAKE_BRANCHES(model).modified
    check_model(model)
    assert probe.worst(model).worst_abs == 0.0
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == interface
    digest = graph_digest(model)
    assert not TAKE_BRANCHES(model).modified and graph_digest(model) == digest
    return [node.op_type for node in model.graph.all_nodes()]


def branch(condition: str, then: str, other: str, name: str = "y") -> str:
    return f"""{name} = If({condition}) <then_branch = t_{name} () => (float[A,B] p_{name}) {{ {then} }},
                             else_branch = e_{name} () => (float[C,D] q_{name}) {{ {other} }}>"""


CONDITIONS = {
    "a constant": ("", "c"),
    "a size": ("s = Shape(x) n = Gather(s, one) k = Equal(n, four)", "k"),
    "a rank": ("s = Shape(x) z = Size(s) k = Equal(z, two)", "k"),
    "a comparison of sizes": ("s = Shape<start=1>(x) n = Squeeze(s, ax) k = Greater(n, two)", "k"),
    "arithmetic": ("s = Shape(x) n = Gather(s, one) m = Mod(n, two) k = Equal(m, zero)", "k"),
    "a cast and a not": ("s = Shape(x) n = Gather(s, one) d = Sub(n, four) e = Cast<to=9>(d) k = Not(e)", "k"),
    "several": ("s = Shape(x) n = Gather(s, one) a1 = Equal(n, four) k = And(a1, c)", "k"),
}
CONSTANTS = "<bool c = {1}, int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 four = {4}, int64[1] ax = {0}>"


@pytest.mark.parametrize(("condition", "size"), list(itertools.product(CONDITIONS, (4, 5))))
def test_conditions_that_follow_from_sizes_and_constants(condition: str, size: int) -> None:
    lines, name = CONDITIONS[condition]
    text = f"""g (float[N,{size}] x) => (float[N,{size}] y) {CONSTANTS} {{ {lines}
        {branch(name, "p_y = Neg(x)", "h = Abs(x) q_y = Relu(h)")} }}"""
    operators = decided(text)
    assert "If" not in operators and len({"Neg", "Relu"} & set(operators)) == 1


def test_branches_of_other_ranks_let_shapes_behind_them_be_known() -> None:
    """Exporters squeeze only where the size is 1: the rank behind the If is not known before it is decided."""
    text = """g (float[N,1,4] x) => (float[N,K] y) <int64 one = {1}, int64[1] ax = {1}, int64 i = {1}, int64 four = {4}>
        { s = Shape(x) n = Gather(s, i) k = Equal(n, one)
        v = If(k) <then_branch = t () => (float[A,B] p) { p = Squeeze(x, ax) },
                   else_branch = e () => (float[C,D,E] q) { q = Identity(x) }>
        vs = Shape(v) vn = Gather(vs, i) vk = Equal(vn, four)
        y = If(vk) <then_branch = t2 () => (float[A2,B2] p2) { p2 = Neg(v) },
                    else_branch = e2 () => (float[C2,D2] q2) { q2 = Abs(v) }> }"""
    assert [op for op in decided(text) if op in ("If", "Squeeze", "Neg", "Abs")] == ["Squeeze", "Neg"]


def test_nested_branches_that_use_the_same_names() -> None:
    inner = branch("c", "h = Neg(a) p_z = Abs(h)", "h = Relu(a) q_z = Abs(h)", "z")
    text = f"""g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ a = Relu(x) {
        branch("c", f"{inner} p_y = Neg(z)", "h = Relu(a) q_y = Neg(h)")
    } }}"""
    assert decided(text) == ["Relu", "Neg", "Abs", "Neg"]


def test_a_known_branch_inside_one_that_is_not_known() -> None:
    inner = branch("c", "h = Neg(a) p_z = Abs(h)", "h = Relu(a) q_z = Abs(h)", "z")
    text = f"""g (float[N,4] x, bool r) => (float[N,4] y) {CONSTANTS} {{ a = Relu(x) {
        branch("r", f"{inner} p_y = Neg(z)", "h = Relu(a) q_y = Neg(h)")
    } }}"""
    assert decided(text).count("If") == 1


def test_constants_of_the_graph_around_are_seen_inside() -> None:
    text = f"""g (float[N,4] x, bool r) => (float[N,4] y) {CONSTANTS} {{
        {
        branch(
            "r",
            "k = Equal(one, two) z = If(k) <then_branch = t2 () => (float[E,F] p2) { p2 = Neg(x) }, "
            "else_branch = e2 () => (float[G,H] q2) { q2 = Abs(x) }> p_y = Relu(z)",
            "q_y = Neg(x)",
        )
    } }}"""
    assert sorted(decided(text)) == ["Abs", "If", "Neg", "Relu"]


@pytest.mark.parametrize("given", ["p_y = Identity(x)", "p_y = Identity(a)", "k0 = Identity(x) p_y = Identity(k0)"])
def test_a_branch_that_gives_back_what_is_outside(given: str) -> None:
    text = f"""g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ a = Relu(x) {branch("c", given, "q_y = Neg(a)")} }}"""
    assert "If" not in decided(text)


def test_a_branch_inside_a_loop() -> None:
    text = """g (float[2,4] x) => (float[2,4] y) <int64 n = {3}, bool c = {1}, bool f = {0}> {
        y = Loop(n, c, x) <body = b (int64 i, bool k, float[2,4] v) => (bool k2, float[2,4] w) { k2 = Identity(k)
            w = If(f) <then_branch = t () => (float[2,4] p) { p = Neg(v) },
                       else_branch = e () => (float[2,4] q) { q = Abs(v) }> }> }"""
    assert "If" not in decided(text)


def test_several_outputs_and_weights_of_the_branch_itself() -> None:
    text = f"""g (float[N,4] x) => (float[N,4] y, float[N,4] z) {CONSTANTS} {{
        y, z = If(c) <then_branch = t () => (float[A,B] p, float[C,D] q) <float[4] w = {{1,2,3,4}}>
                        {{ p = Mul(x, w) q = Add(x, w) }},
                      else_branch = e () => (float[E,F] r, float[G,H] s) {{ r = Neg(x) s = Abs(x) }}> }}"""
    assert decided(text) == ["Mul", "Add"]


def test_a_condition_of_the_input_stays_and_is_noted() -> None:
    model = parse(f"g (float[N,4] x, bool r) => (float[N,4] y) {{ {branch('r', 'p_y = Neg(x)', 'q_y = Abs(x)')} }}")
    TAKE_BRANCHES(model)
    result = TAKE_BRANCHES(model)
    assert not result.modified
    assert result.notes == ("If:y: its condition is not known before it runs",)


def test_a_size_that_is_a_range_decides_nothing() -> None:
    text = f"""g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ s = Shape(x) n = Gather(s, zero) k = Equal(n, two)
        {branch("k", "p_y = Neg(x)", "q_y = Abs(x)")} }}"""
    model = parse(text)
    TAKE_BRANCHES(model)
    assert "If" in [node.op_type for node in model.graph]
