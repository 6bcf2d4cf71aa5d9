from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase
from pass_cases import apply, assert_left_alone, assert_same, parse

from compiler.errors import InternalError
from compiler.passes.rules import RulePass
from compiler.passes.values import origins_of


class DropDoubleNeg(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.Neg(op.Neg(x))

    def rewrite(self, op: Any, x: Any) -> Any:
        return x


class MulToAdd(RewriteRuleClassBase):
    """x·2 = x + x, for a constant 2."""

    def pattern(self, op: Any, x: Any, two: Any) -> Any:
        return op.Mul(x, two)

    def check(self, context: Any, x: Any, two: Any) -> MatchResult:
        result = MatchResult()
        if two.const_value is None or two.const_value.numpy().tolist() != 2.0:
            return result.fail("the factor is not 2")
        return result

    def rewrite(self, op: Any, x: Any, two: Any) -> Any:
        return op.Add(x, x)


class ReluToMax(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Max(x, op.initializer(ir.tensor(np.float32(0)), name="zero"))


class Forever(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.Abs(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Abs(x)


NEG = RulePass("drop-double-neg", [DropDoubleNeg.rule()])
DOUBLE = RulePass("mul-to-add", [MulToAdd.rule()])
MAX = RulePass("relu-to-max", [ReluToMax.rule()])


def test_rule_that_returns_a_graph_input_keeps_the_names_of_input_and_output() -> None:
    model, result = apply(NEG, "g (float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }")
    assert result.modified
    assert_same(model, "g (float[2] x) => (float[2] y) { y = Identity(x) }")


def test_rule_that_returns_a_value_others_know_does_not_rename_it() -> None:
    model, _ = apply(NEG, "g (float[2] x) => (float[2] y, float[2] r) { r = Relu(x) a = Neg(r) b = Neg(a) y = Abs(b) }")
    assert_same(model, "g (float[2] x) => (float[2] y, float[2] r) { r = Relu(x) y = Abs(r) }")


def test_new_initializer_does_not_replace_one_of_the_same_name() -> None:
    model, _ = apply(
        MAX, "g (float[2] x) => (float[2] y) <float[2] zero = {5,6}> { a = Add(x, zero) b = Relu(a) y = Relu(b) }"
    )
    assert model.graph.initializers["zero"].const_value.numpy().tolist() == [5, 6]
    assert len(model.graph.initializers) == 3


def test_untouched_names_stay_and_new_ones_clash_with_none() -> None:
    model, _ = apply(
        MAX,
        """g (float[2] x) => (float[2] y) { [n] n_Max_output = Abs(x) [n_Max] val_0 = Neg(n_Max_output)
        [r] val_1 = Relu(val_0) y = Abs(val_1) }""",
    )
    assert [node.name for node in model.graph][:2] == ["n", "n_Max"]
    assert [node.outputs[0].name for node in model.graph] == ["n_Max_output", "val_0", "val_1", "y"]


def test_rewritten_node_carries_the_sources_origin_and_metadata() -> None:
    model = parse("g (float[2] x) => (float[2] y) <float two = {2.0}> { [a] r = Relu(x) [b] y = Mul(r, two) }")
    model.graph[1].metadata_props["exporter"] = "layer 7"
    RulePass("both", [MulToAdd.rule(), ReluToMax.rule()])(model)
    assert [origins_of(node) for node in model.graph] == [("a",), ("b",)]
    assert model.graph[1].metadata_props["exporter"] == "layer 7"


def test_intermediate_value_that_is_read_elsewhere_is_a_near_miss_with_the_reader() -> None:
    result = assert_left_alone(
        NEG, "g (float[2] x) => (float[2] y, float[2] z) { [n] a = Neg(x) [m] y = Neg(a) [r] z = Relu(a) }"
    )
    assert result.notes == ("m: its intermediate value 'a' is also read by 'r'",)


def test_reason_of_the_check_is_noted_with_the_node() -> None:
    result = assert_left_alone(DOUBLE, "g (float[2] x) => (float[2] y) <float c = {3.0}> { [m] y = Mul(x, c) }")
    assert result.notes == ("m: the factor is not 2",)


def test_constant_that_the_caller_may_override_is_not_trusted() -> None:
    result = assert_left_alone(
        DOUBLE, "g (float[2] x, float two) => (float[2] y) <float two = {2.0}> { [m] y = Mul(x, two) }"
    )
    assert result.notes == ("m: input 'two' is an initializer that the caller may override",)


def test_commuted_pattern_matches_swapped_operands() -> None:
    text = "g (float[2] x) => (float[2] y) <float two = {2.0}> { y = Mul(two, x) }"
    assert not DOUBLE(parse(text)).modified
    model, _ = apply(RulePass("mul-to-add", [MulToAdd.rule()], commute=True), text)
    assert model.graph[0].op_type == "Add"


def test_constants_of_constant_nodes_match_and_branches_are_rewritten() -> None:
    model, _ = apply(
        DOUBLE,
        """g (float[3] x, bool c) => (float[3] y) { r = Relu(x)
        y = If(c) <then_branch = t () => (float[3] p) { k = Constant<value_float=2.0>() p = Mul(r, k) },
                   else_branch = e () => (float[3] q) { q = Abs(x) }> }""",
    )
    assert "Mul" not in {node.op_type for node in model.graph.all_nodes()}


def test_functions_are_left_alone() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "mine": 1]> g (float[2] x) => (float[2] y) { y = mine.f(x) }
        <domain: "mine", opset_import: ["": 20]> f (a) => (b) { n = Neg(a) b = Neg(n) }"""
    assert not NEG(parse(text)).modified


def test_chain_is_rewritten_to_the_end() -> None:
    model, _ = apply(NEG, "g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(a) c = Neg(b) d = Neg(c) y = Relu(d) }")
    assert_same(model, "g (float[2] x) => (float[2] y) { y = Relu(x) }")


def test_rules_that_do_not_come_to_an_end_are_stopped() -> None:
    with pytest.raises(InternalError, match="not come to an end"):
        RulePass("forever", [Forever.rule()])(parse("g (float[2] x) => (float[2] y) { y = Abs(x) }"))
