"""What is said of a node that is gone: folded, left out, merged or removed, and who stands in its place."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from compiler.driver.delivered.trace import follow
from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.removed_nodes import REMOVED_KEY, read_removed
from compiler.passes.run import run_passes
from compiler.passes.simplify_onnxsim import SIMPLIFY_ONNXSIM

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[N,3,6,6] x) => (float[N,48] y, float[N,108] z)
<float[3,3,3,3] w, float[1] one = {1.0}, int64[1] start = {0}, int64[1] rest = {-1}, int64[1] five = {5}>
{
 [conv] a = Conv(x, w)
 [drop] d = Dropout(a)
 [scale] e = Mul(d, one)
 [number] k = Constant<value_float=3.0>()
 [shift] f = Add(e, k)
 [relu] r = Relu(f)
 [dead] q = Neg(r)
 [shape] s = Shape(r)
 [first] n = Gather(s, start)
 [both] t = Concat<axis=0>(n, rest)
 [reshape] v = Reshape(r, t)
 [filled] c = ConstantOfShape(five)
 [sum] u = ReduceSum<keepdims=0>(c)
 [last] y = Add(v, u)
 [flat] z = Flatten(x)
}"""

NEG = '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { [only] y = Neg(x) }'


def example() -> ir.Model:
    text = TEXT.replace("float[3,3,3,3] w", f"float[3,3,3,3] w = {{{','.join(['0.5'] * 81)}}}")
    return ir.from_onnx_text(text.replace("[N,48]", "[N,M]"))


CHEAP = load_passes(name for name in PORTABLE if name != "simplify-onnxsim")


@pytest.fixture(scope="module")
def simplified() -> ir.Model:
    model = example()
    run_passes(model, [SIMPLIFY_ONNXSIM, *CHEAP])
    return model


@pytest.mark.parametrize(
    ("name", "words", "now"),
    [
        ("shift", "Add 'shift' was merged into 'conv' (pass 1 simplify-onnxsim)", "conv"),
        ("dead", "Neg 'dead' was removed: no output depended on it (pass 1 simplify-onnxsim)", ""),
        ("filled", "ConstantOfShape 'filled' was folded into a constant, read by 'last'", "last"),
        ("sum", "folded into a constant, read by 'last'", "last"),
        ("number", "Constant 'number' was folded into a constant, read by 'conv'", "conv"),
    ],
)
def test_what_onnxsim_and_the_passes_after_it_drop_is_told_with_the_pass(
    simplified: ir.Model, name: str, words: str, now: str
) -> None:
    found = follow(simplified, name)
    assert found is not None and words in found.steps[0] and "(pass " in found.steps[0]
    heir = follow(simplified, now) if now else None
    assert found.nodes == (heir.nodes if heir else ())


@pytest.mark.parametrize("name", ["conv", "relu", "reshape", "flat"])
def test_a_node_that_is_there_or_fused_needs_no_words(simplified: ir.Model, name: str) -> None:
    found = follow(simplified, name)
    assert found is not None and found.nodes and not found.steps


def test_an_unknown_name_has_no_answer(simplified: ir.Model) -> None:
    assert follow(simplified, "never") is None


def test_without_onnxsim_the_passes_of_our_own_leave_no_gap() -> None:
    model = example()
    names = [str(node.name) for node in model.graph]
    run_passes(model, CHEAP)
    assert all(follow(model, name) for name in names)
    assert "Mul 'scale' was left out" in follow(model, "scale").steps[0]
    assert "Constant 'number' was folded into the constant 'k', read by 'shift'" in follow(model, "number").steps[0]


def test_a_fate_whose_heir_is_lost_by_a_later_stage_leads_on_and_survives_a_file() -> None:
    model = example()
    run_passes(model, CHEAP)
    model = ir.from_proto(ir.to_proto(model))

    def drop_last(model: ir.Model) -> PassResult:
        for node in [node for node in model.graph if node.name == "flat"]:
            node.outputs[0].replace_all_uses_with(model.graph.inputs[0], replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        return PassResult(True)

    before = read_removed(model)
    run_passes(model, [FunctionPass("drop-last", drop_last)], first=90)
    after = read_removed(model)
    assert before.items() <= after.items() and after["flat"].by == "90 drop-last"


def test_a_node_that_another_operator_replaces_is_merged_into_it() -> None:
    model = ir.from_onnx_text(NEG)

    def replace(model: ir.Model) -> PassResult:
        old = model.graph[0]
        new = ir.node("Abs", [old.inputs[0]], name="instead")
        value, old_value = new.outputs[0], old.outputs[0]
        value.type, value.shape, value.name, old_value.name = old_value.type, old_value.shape, old_value.name, None
        model.graph.insert_after(old, [new])
        old_value.replace_all_uses_with(value, replace_graph_outputs=True)
        model.graph.remove(old, safe=True)
        return PassResult(True)

    run_passes(model, [FunctionPass("replace", replace)])
    found = follow(model, "only")
    assert [node.name for node in found.nodes] == ["instead"]
    assert found.steps == ("Neg 'only' was merged into 'instead' (pass 1 replace)",)


def test_a_pass_that_loses_nothing_writes_nothing() -> None:
    model = ir.from_onnx_text(NEG)
    run_passes(model, CHEAP)
    assert REMOVED_KEY not in model.metadata_props
    model.metadata_props[REMOVED_KEY] = json.dumps(
        {"gone": {"op": "Relu", "how": "merged", "by": "1 x", "successors": ["only"]}}
    )
    assert [node.name for node in follow(model, "gone").nodes] == ["only"]


@pytest.mark.parametrize("text", ["", "[]", "no JSON", '{"a": 1}', '{"a": {"op": "Relu"}}', "[" * 100000])
def test_what_a_model_from_elsewhere_has_under_the_key_is_no_fate(text: str) -> None:
    model = ir.from_onnx_text(NEG)
    model.metadata_props[REMOVED_KEY] = text
    assert read_removed(model) == {} and follow(model, "a") is None
