from __future__ import annotations

import onnx_ir as ir
from pass_cases import apply, assert_left_alone, assert_same

from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES


def test_chain_that_no_output_needs_goes_with_its_initializers() -> None:
    model, result = apply(
        REMOVE_DEAD_NODES,
        "g (float[3] x) => (float[3] y) <float[3] w = {1,2,3}> { a = Mul(x, w) b = Relu(a) y = Abs(x) }",
    )
    assert result.modified
    assert_same(model, "g (float[3] x) => (float[3] y) { y = Abs(x) }")


def test_dead_nodes_of_a_branch_go_and_so_does_what_only_they_read() -> None:
    model, _ = apply(
        REMOVE_DEAD_NODES,
        """g (float[3] x, bool c) => (float[3] y) { a = Relu(x)
        y = If(c) <then_branch = t () => (float[3] p) { d = Abs(a) p = Neg(x) },
                   else_branch = e () => (float[3] q) { q = Abs(x) }> }""",
    )
    assert sorted(node.op_type for node in model.graph.all_nodes()) == ["Abs", "If", "Neg"]


def test_value_that_only_a_branch_reads_stays() -> None:
    assert_left_alone(
        REMOVE_DEAD_NODES,
        """g (float[3] x, bool c) => (float[3] y) { a = Relu(x)
        y = If(c) <then_branch = t () => (float[3] p) { p = Neg(a) },
                   else_branch = e () => (float[3] q) { q = Abs(x) }> }""",
    )


def test_unread_graph_input_stays() -> None:
    assert_left_alone(REMOVE_DEAD_NODES, "g (float[3] x, float[3] unread) => (float[3] y) { y = Abs(x) }")


def test_node_with_one_live_output_keeps_all_its_outputs() -> None:
    assert_left_alone(REMOVE_DEAD_NODES, "g (float[4] x) => (float[2] y) { y, z = Split<axis=0, num_outputs=2>(x) }")


def test_unread_function_and_its_domain_go_and_a_called_one_stays() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "used": 1, "unused": 1]>
        g (float[3] x) => (float[3] y) { y = used.f(x) }
        <domain: "used", opset_import: ["": 20]> f (a) => (b) { b = Relu(a) }
        <domain: "unused", opset_import: ["": 20]> h (a) => (b) { b = Relu(a) }"""
    model, _ = apply(REMOVE_DEAD_NODES, text)
    assert [key[1] for key in model.functions] == ["f"]
    assert "unused" not in model.graph.opset_imports


def test_shared_initializer_stays_for_its_other_reader() -> None:
    model, _ = apply(
        REMOVE_DEAD_NODES, "g (float[3] x) => (float[3] y) <float[3] w = {1,2,3}> { a = Mul(x, w) y = Add(x, w) }"
    )
    assert isinstance(model.graph.initializers["w"], ir.Value)
