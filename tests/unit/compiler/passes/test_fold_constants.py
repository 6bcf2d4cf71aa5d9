from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import apply, assert_left_alone, assert_same, parse

from compiler.model.graph import graph_digest
from compiler.passes.fold_constants import FOLD_CONSTANTS, FoldConstants
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES


def test_chain_of_constants_becomes_one_initializer() -> None:
    model, result = apply(
        FOLD_CONSTANTS,
        """g (float[N,2] x) => (float[N,2] y) <float[2] a = {1,2}, float[2] b = {3,4}>
        { c = Add(a, b) d = Neg(c) y = Mul(x, d) }""",
    )
    assert result.modified
    assert_same(model, "g (float[N,2] x) => (float[N,2] y) <float[2] d = {-4,-6}> { y = Mul(x, d) }")


def test_constant_node_becomes_an_initializer() -> None:
    model, _ = apply(
        FOLD_CONSTANTS, "g (float[N,2] x) => (float[N,2] y) { c = Constant<value_floats=[1.0,2.0]>() y = Mul(x, c) }"
    )
    assert_same(model, "g (float[N,2] x) => (float[N,2] y) <float[2] c = {1,2}> { y = Mul(x, c) }")


def test_static_sizes_are_known_beside_a_symbolic_one() -> None:
    model, _ = apply(
        FOLD_CONSTANTS,
        """g (float[N,4,6] x) => (float[6,K] y) <int64[1] i = {2}, int64[1] r = {-1}>
        { s = Shape(x) n = Gather(s, i) t = Concat<axis=0>(n, r) y = Reshape(x, t) }""",
    )
    REMOVE_DEAD_NODES(model)
    assert_same(model, "g (float[N,4,6] x) => (float[6,K] y) <int64[2] t = {6,-1}> { y = Reshape(x, t) }")


def test_symbolic_size_is_left_alone() -> None:
    assert_left_alone(
        FOLD_CONSTANTS,
        """g (float[N,4,6] x) => (float[N,K] y) <int64[1] i = {0}, int64[1] r = {-1}>
        { s = Shape(x) n = Gather(s, i) t = Concat<axis=0>(n, r) y = Reshape(x, t) }""",
    )


def test_result_beyond_the_budget_is_left_alone_with_the_numbers() -> None:
    text = """g (float[N,20000] x) => (float[N,20000] y) <int64[1] n = {20000}>
        { z = ConstantOfShape(n) y = Add(x, z) }"""
    notes = assert_left_alone(FOLD_CONSTANTS, text).notes
    assert notes == ("ConstantOfShape:z: folded it would add 79992 bytes to the model, 65536 are allowed",)
    assert FoldConstants(budget_bytes=80000)(parse(text)).modified


def test_transposed_weight_that_nobody_else_reads_costs_nothing() -> None:
    model, _ = apply(
        FoldConstants(budget_bytes=0),
        "g (float[N,3] x) => (float[N,2] y) <float[2,3] w = {1,2,3,4,5,6}> { t = Transpose(w) y = MatMul(x, t) }",
    )
    assert_same(model, "g (float[N,3] x) => (float[N,2] y) <float[3,2] t = {1,4,2,5,3,6}> { y = MatMul(x, t) }")


def test_shared_weight_is_not_touched() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}>
        { t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w) }"""
    model, _ = apply(FOLD_CONSTANTS, text)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(model.graph.initializers["t"].const_value.numpy(), [[1, 3], [2, 4]])


def test_random_numbers_and_quantization_are_never_folded() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <float[2] w = {1,2}, float s = {0.5}, int8 z = {0}>
        { r = RandomNormalLike(w) q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z)
        a = Add(x, r) y = Add(a, d) }"""
    )
    infer_shapes(model)
    assert not FOLD_CONSTANTS(model).modified


def test_constant_that_the_caller_may_override_is_no_constant() -> None:
    assert_left_alone(
        FOLD_CONSTANTS, "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> { n = Neg(w) y = Add(x, n) }"
    )


def test_node_that_computes_a_graph_output_stays() -> None:
    assert_left_alone(
        FOLD_CONSTANTS, "g (float[2] x) => (float[2] y, float[2] n) <float[2] w = {1,2}> { n = Neg(w) y = Add(x, n) }"
    )


def test_every_output_of_a_node_is_folded() -> None:
    model, _ = apply(
        FOLD_CONSTANTS,
        """g (float[2] x) => (float[2] y) <float[4] w = {1,2,3,4}>
        { a, b = Split<axis=0, num_outputs=2>(w) p = Add(x, a) y = Mul(p, b) }""",
    )
    assert_same(
        model, "g (float[2] x) => (float[2] y) <float[2] a = {1,2}, float[2] b = {3,4}> { p = Add(x, a) y = Mul(p, b) }"
    )


@pytest.mark.parametrize(
    "chain",
    [
        "m = Unsqueeze(n, both)",
        "m = Unsqueeze(n, ends)",
        "v = Unsqueeze(n, zero) m = Unsqueeze(v, zero)",
        "a = Unsqueeze(n, both) v = Squeeze(a, zero) m = Unsqueeze(v, zero)",
        "a = Unsqueeze(n, both) b = Squeeze(a) m = Unsqueeze(b, both)",
    ],
)
def test_sizes_keep_their_rank_through_unsqueeze_and_squeeze(chain: str) -> None:
    """A size as a matrix stays a matrix, beside a symbolic batch; the product with it has rank 2."""
    model, result = apply(
        FOLD_CONSTANTS,
        f"""g (float[N,4] x) => (int64[A,B] y)
        <int64 one = {{1}}, int64[1] zero = {{0}}, int64[2] both = {{0,1}}, int64[2] ends = {{0,-1}}>
        {{ s = Shape(x) n = Gather(s, one) {chain} y = Neg(m) }}""",
    )
    assert result.modified
    assert model.graph.initializers["m"].const_value.numpy().tolist() == [[4]]


def test_the_digest_of_a_model_stays_when_a_clone_is_folded() -> None:
    """Clones share the tensor of a Constant, and the pass on one named it: another key for a device built later."""
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool b) => (float[2] y)
        { c = Constant<value=float[1] {2.0}>() n = Neg(c) m = Add(x, c) z = Mul(m, n)
          y = If (b) <then_branch = t () => (float[2] p) { d = Constant<value=float[1] {3.0}>() p = Mul(z, d) },
                      else_branch = e () => (float[2] q) { q = Neg(z) }> }"""
    )
    before = graph_digest(model)
    assert FOLD_CONSTANTS(model.clone()).modified
    assert graph_digest(model) == before
