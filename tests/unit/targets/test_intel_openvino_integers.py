"""OpenVINO computes 64-bit integers in 32 bits: what may need more is refused, what provably does not is built."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from compiler.fleet import Range
from targets.intel_openvino.integers import refuse_wide_integers


def refused(text: str, **dims: Range) -> list[str]:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    return [refusal.op for refusal in refuse_wide_integers(model, dims)]


CONST = "Constant <value = int64 {%d}> ()"


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        (f"(int64[4] k) => (int64[4] y) {{ c = {CONST % 2654435761} y = Mul (k, c) }}", ["Constant", "Mul"]),
        (f"(int64[4] k) => (int64[4] y) {{ c = {CONST % 3} y = Mul (k, c) }}", ["Mul"]),
        ("(int64[5] k) => (int64 y) { y = ReduceSum <keepdims = 0> (k) }", ["ReduceSum"]),
        ("(float[4] x) => (int64[4] y) { y = Cast <to = 7> (x) }", ["Cast"]),
        ("(int64[4] a, int64[4] b) => (int64[4] y) { y = Mul (a, b) }", ["Mul"]),
        ("(int64[2,2] a, int64[2,2] b) => (int64[2,2] y) { y = MatMul (a, b) }", ["MatMul"]),
        ("(int64[4] k) => (int64[4] y) { a = Add (k, k) b = Add (a, k) y = Identity (b) }", ["Add"]),
        (f"(int64[4] k) => (bool[4] y) {{ c = {CONST % 2**35} y = Less (k, c) }}", ["Constant"]),
    ],
)
def test_integers_that_may_need_more_than_32_bits_are_refused(text: str, ops: list[str]) -> None:
    """They were computed in 32 bits and delivered; random samples, 0 and 1, showed nothing."""
    assert refused(text) == ops


@pytest.mark.parametrize(
    "text",
    [
        # ids with an offset, reshaped, in a table
        f"(int64[b,s] i, float[512,8] t) => (float[b,s,8] y) {{ c = {CONST % 2} p = Add (i, c) y = Gather (t, p) }}",
        f"(int64[s] ids, float[512,8] t) => (float[1,s,8] y) {{ c = {CONST % 2} m = Mul (ids, c) "
        "z = Constant <value_ints = [0]> () u = Unsqueeze (m, z) y = Gather (t, u) }",
        # a mask of 64-bit integers
        f"(int64[b,s] m) => (float[b,s] y) {{ c = {CONST % 1} n = Sub (c, m) y = Cast <to = 1> (n) }}",
        # positions counted from what is no padding
        f"(int64[b,s] ids) => (int64[b,s] y) {{ c = {CONST % 1} a = {CONST % 1} e = Equal (ids, c) n = Not (e) "
        "k = Cast <to = 7> (n) p = CumSum (k, a) q = Mul (p, k) y = Add (q, c) }",
        # sizes, multiplied and halved by way of floats
        "(float[b,s,8] x) => (int64[3] y) { h = Shape (x) f = Cast <to = 1> (h) c = Constant <value = float {0.5}> () "
        "g = Mul (f, c) r = Floor (g) y = Cast <to = 7> (r) }",
        "(float[b,s,8] x) => (int64 y) { h = Shape (x) y = ReduceProd <keepdims = 0> (h) }",
        f"(float[b,s,8] x) => (int64[3] y) {{ h = Shape (x) c = {CONST % 64} m = Mul (h, c) y = Mul (m, h) }}",
        # what ends a slice is the greatest integer there is
        "(float[b,s] x) => (float[b,t] y) { a = Constant <value_ints = [1]> () "
        f"e = Constant <value = int64[1] {{{2**63 - 1}}}> () y = Slice (x, a, e, a) }}",
        "(float[b,9] x) => (int64[b,1] y) { y = ArgMax <axis = 1> (x) }",
        "(float[4] x) => (int64[4] y) { s = Sigmoid (x) c = Constant <value = float {255.0}> () m = Mul (s, c) "
        "r = Round (m) y = Cast <to = 7> (r) }",
        "(int64[4] a, int64[4] b) => (int64[4] y) { y = Add (a, b) }",
        f"(int64[4] a) => (int64[4] y) {{ c = {CONST % 101} m = Mod (a, c) y = Mul (m, m) }}",
        "(int32[4] a, int32[4] b) => (int32[4] y) { y = Mul (a, b) }",
    ],
)
def test_ordinary_arithmetic_of_ids_masks_and_sizes_is_taken(text: str) -> None:
    assert refused(text) == []


def test_ranges_of_open_dimensions_bound_the_sizes() -> None:
    text = "(float[b,8] x) => (int64[2] y) { h = Shape (x) n = Neg (h) m = Mul (n, h) y = Mul (m, h) }"
    assert refused(text, b=Range(1, 4, 16)) == []
    assert refused(text, b=Range(1, 4, 4096)) == ["Mul"]
