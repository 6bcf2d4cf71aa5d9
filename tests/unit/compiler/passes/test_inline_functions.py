"""Local functions become nodes: nested, with attributes, called often, from branches, written for another opset."""

from __future__ import annotations

import pytest
from pass_cases import parse

from compiler.model.graph import check_model, graph_digest
from compiler.passes.inline_functions import INLINE_FUNCTIONS
from compiler.passes.probe import make_probe

HEAD = '<ir_version: 10, opset_import: ["": 18, "mine": 1, "yours": 1]>'


def inlined(text: str) -> list[str]:
    """Operators after the pass, which must keep the outputs to the bit and be done after one run."""
    model = parse(text)
    probe = make_probe(model)
    assert probe.expected is not None, probe.why
    interface = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    result = INLINE_FUNCTIONS(model)
    assert result.modified and not model.functions, result.notes
    check_model(model)
    assert probe.worst(model).worst_abs == 0.0
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == interface
    names = [node.name for node in model.graph.all_nodes()]
    assert len(set(names)) == len(names)
    digest = graph_digest(model)
    assert not INLINE_FUNCTIONS(model).modified and graph_digest(model) == digest
    return [node.op_type for node in model.graph.all_nodes()]


def test_functions_in_functions_with_attributes_and_defaults() -> None:
    text = f"""{HEAD} g (float[N,3] x) => (float[N,3] y)
        {{ [first] a = mine.Block<slope=0.3>(x) [second] y = mine.Block(a) }}
        <domain: "mine", opset_import: ["": 18, "yours": 1]> Block <slope: float = 0.1> (u) => (v)
        {{ c = yours.Act<alpha: float = @slope>(u) v = Add(c, u) }}
        <domain: "yours", opset_import: ["": 18]> Act <alpha: float = 0.5> (t) => (r)
        {{ r = LeakyRelu<alpha: float = @alpha>(t) }}"""
    model = parse(text)
    INLINE_FUNCTIONS(model)
    assert [node.attributes.get_float("alpha", 0) for node in model.graph if node.op_type == "LeakyRelu"] == [
        pytest.approx(0.3),
        pytest.approx(0.1),
    ]
    assert inlined(text) == ["LeakyRelu", "Add", "LeakyRelu", "Add"]
    origins = [node.metadata_props["fleetc.origin"] for node in model.graph]
    assert origins == ["first", "first", "second", "second"]


def test_a_call_may_leave_out_inputs() -> None:
    operators = inlined(
        f"""{HEAD} g (float[N,3] x) => (float[N,3] y) {{ y = mine.Cut(x) }}
        <domain: "mine", opset_import: ["": 18]> Cut (t, low) => (r) {{ r = Clip(t, low) }}"""
    )
    assert operators == ["Clip"]


def test_a_call_in_a_branch_and_names_that_are_taken_there() -> None:
    operators = inlined(
        f"""{HEAD} g (float[N,3] x, bool c) => (float[N,3] y) {{ a = mine.Act(x)
        y = If(c) <then_branch = t () => (float[N,3] p) {{ h = mine.Act(a) p = Neg(h) }},
                   else_branch = e () => (float[N,3] q) {{ h2 = Abs(a) q = mine.Act(h2) }}> }}
        <domain: "mine", opset_import: ["": 18]> Act (t) => (r) {{ h = Relu(t) h2 = Add(h, t) r = Sigmoid(h2) }}"""
    )
    assert operators.count("Sigmoid") == 3


def test_a_body_with_a_branch_of_its_own() -> None:
    operators = inlined(
        f"""{HEAD} g (float[N,3] x, bool c) => (float[N,3] y) {{ a = mine.Pick(x, c) y = mine.Pick(a, c) }}
        <domain: "mine", opset_import: ["": 18]> Pick (t, k) => (r)
        {{ r = If(k) <then_branch = b () => (float[N,3] p) {{ p = Neg(t) }},
                      else_branch = e () => (float[N,3] q) {{ q = Abs(t) }}> }}"""
    )
    assert operators.count("If") == 2


@pytest.mark.parametrize(("body", "opset"), [(11, 18), (17, 18), (18, 17), (13, 20), (20, 13)])
def test_a_body_of_another_opset_is_inlined_where_its_operators_mean_the_same(body: int, opset: int) -> None:
    text = f"""{HEAD.replace("18", str(opset))} g (float[N,3] x) => (float[N,3] y) {{ y = mine.Act(x) }}
        <domain: "mine", opset_import: ["": {body}]> Act (t) => (r) {{ h = Relu(t) r = Tanh(h) }}"""
    assert inlined(text) == ["Relu", "Tanh"]


@pytest.mark.parametrize(("operator", "body", "opset"), [("Softmax", 11, 18), ("Softmax", 18, 11), ("Gelu", 20, 18)])
def test_a_body_whose_operators_changed_stays_a_function(operator: str, body: int, opset: int) -> None:
    model = parse(
        f"""{HEAD.replace("18", str(opset))} g (float[2,3,4] x) => (float[2,3,4] y) {{ y = mine.Act(x) }}
        <domain: "mine", opset_import: ["": {body}]> Act (t) => (r) {{ r = {operator}(t) }}"""
    )
    result = INLINE_FUNCTIONS(model)
    assert not result.modified
    assert f"in opset {body}, the model in {opset}, and {operator} changed" in result.notes[0]


def test_a_model_without_functions_is_left_alone() -> None:
    assert not INLINE_FUNCTIONS(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")).modified
