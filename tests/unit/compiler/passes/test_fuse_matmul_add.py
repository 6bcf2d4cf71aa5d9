from __future__ import annotations

import pytest
from fusion_helpers import assert_fuses, assert_leaves

from compiler.passes.fuse_matmul_add import FUSE_MATMUL_ADD


@pytest.mark.parametrize("bias", ["5", "1,5", "3,5"])
@pytest.mark.parametrize("total", ["Add(m, c_k)", "Add(c_k, m)"])
def test_a_product_with_a_bias_becomes_a_gemm(total, bias):
    before = (
        f"(float[3,4] x, float[4,5] c_w, float[{bias}] c_k) => (float[3,5] y) {{ m = MatMul(x, c_w)  y = {total} }}"
    )
    after = f"(float[3,4] x, float[4,5] c_w, float[{bias}] c_k) => (float[3,5] y) {{ y = Gemm(x, c_w, c_k) }}"
    assert_fuses(FUSE_MATMUL_ADD, before, after)


@pytest.mark.parametrize("perm", ["", "<perm=[1,0]>"])
@pytest.mark.parametrize("is_a, is_b", [(True, False), (False, True), (True, True)])
def test_transposes_go_into_the_gemm(is_a, is_b, perm):
    a, b = ("4,N" if is_a else "N,4"), ("5,4" if is_b else "4,5")
    head = f"(float[{a}] a, float[{b}] b, float[5] c_k) => (float[N,5] y)"
    nodes = [f"l = Transpose{perm}(a)"] * is_a + [f"r = Transpose{perm}(b)"] * is_b
    product = f"m = MatMul({'l' if is_a else 'a'}, {'r' if is_b else 'b'})"
    attributes = ", ".join(["transA=1"] * is_a + ["transB=1"] * is_b)
    before = f"{head} {{ {' '.join([*nodes, product])}  y = Add(m, c_k) }}"
    assert_fuses(FUSE_MATMUL_ADD, before, f"{head} {{ y = Gemm<{attributes}>(a, b, c_k) }}")


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            "(float[2,3,4] x, float[2,4,5] z, float[5] c_k) => (float[2,3,5] y) { m = MatMul(x, z)  y = Add(m, c_k) }",
            "not 2",
        ),
        (
            "(float[1,4] x, float[4,5] z, float[3,5] c_k) => (float[3,5] y) { m = MatMul(x, z)  y = Add(m, c_k) }",
            "not known to fit",
        ),
        (
            "(float[N,4] x, float[4,1] z, float[5] c_k) => (float[N,5] y) { m = MatMul(x, z)  y = Add(m, c_k) }",
            "not known to fit",
        ),
        (
            "(float[N,4] x, float[4,5] z, float[1,1,5] c_k) => (float[1,N,5] y) { m = MatMul(x, z)  y = Add(m, c_k) }",
            "a row or a matrix",
        ),
        (
            "(float[N,4] x, float[4,5] z, float c_k) => (float[N,5] y) { m = MatMul(x, z)  y = Add(m, c_k) }",
            "a row or a matrix",
        ),
        (
            "(int32[N,4] x, int32[4,5] z, int32[5] c_k) => (int32[N,5] y) { m = MatMul(x, z)  y = Add(m, c_k) }",
            "floating-point",
        ),
        (
            "(float[N,4] x, float[4,5] z, float[5] c_k) => (float[N,5] y, float[N,5] m)"
            "{ m = MatMul(x, z)  y = Add(m, c_k) }",
            "also a graph output",
        ),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, reason):
    assert_leaves(FUSE_MATMUL_ADD, text, reason)
