"""Cases of whole blocks, as residual, mobile and transformer networks repeat them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.target.testing.case import BATCHES, Case, ints, text_case


def blocks() -> Iterator[Case]:
    """Cases of this kind."""
    yield text_case(
        "block-residual",
        "(float[2,4,8,8] x) => (float[2,4,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) "
        "c = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Add(c, x) y = Relu(s) }",
        weights={"w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,)},
        essential=True,
    )
    yield text_case(
        "block-downsample-zeros",
        "(float[2,4,8,8] x) => (float[2,6,4,4] y) { a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b) "
        "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) z = Pad(p, pads) s = Add(a, z) y = Relu(s) }",
        weights={"w": (6, 4, 3, 3), "b": (6,), "pads": ints(0, 0, 0, 0, 0, 2, 0, 0)},
        essential=True,
    )
    yield text_case(
        "block-squeeze-excite",
        "(float[2,8,5,5] x) => (float[2,8,5,5] y) { g = GlobalAveragePool(x) d = Conv(g, w1, b1) r = Relu(d) "
        "u = Conv(r, w2, b2) h = HardSigmoid(u) y = Mul(x, h) }",
        weights={"w1": (2, 8, 1, 1), "b1": (2,), "w2": (8, 2, 1, 1), "b2": (8,)},
        essential=True,
    )
    yield text_case(
        "block-inverted-residual",
        "(float[1,4,6,6] x) => (float[1,4,6,6] y) { e = Conv(x, w1, b1) h = HardSwish(e) "
        "d = Conv<group=12, pads=[1,1,1,1]>(h, w2, b2) k = Clip(d, zero, six) p = Conv(k, w3, b3) y = Add(p, x) }",
        weights={
            "w1": (12, 4, 1, 1),
            "b1": (12,),
            "w2": (12, 1, 3, 3),
            "b2": (12,),
            "w3": (4, 12, 1, 1),
            "b3": (4,),
            "zero": np.float32(0),
            "six": np.float32(6),
        },
        essential=True,
    )
    yield text_case(
        "layer-normalization",
        "(float[2,5,8] x) => (float[2,5,8] y) { y = LayerNormalization<axis=-1, epsilon=1e-5>(x, scale, bias) }",
        weights={"scale": (8,), "bias": (8,)},
        essential=True,
    )
    yield text_case(
        "block-attention",
        "(float[2,6,8] x) => (float[2,6,8] y) { qkv = MatMul(x, w) s = Reshape(qkv, heads) "
        "t = Transpose<perm=[2,0,3,1,4]>(s) "
        "q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2) "
        "kt = Transpose<perm=[0,1,3,2]>(k) "
        "d = MatMul(q, kt) e = Mul(d, scale) p = Softmax<axis=-1>(e) o = MatMul(p, v) u = Transpose<perm=[0,2,1,3]>(o) "
        "j = Reshape(u, flat) m = MatMul(j, out) y = Add(m, x) }",
        weights={
            "w": (8, 24),
            "heads": ints(0, 0, 3, 2, 4),
            "i0": np.int64(0),
            "i1": np.int64(1),
            "i2": np.int64(2),
            "scale": np.float32(0.5),
            "flat": ints(0, 0, 8),
            "out": (8, 8),
        },
        essential=True,
    )
    yield text_case(
        "block-encoder-mlp",
        "(float[N,5,8] x) => (float[N,5,8] y) { n = LayerNormalization<axis=-1>(x, scale, bias) a = MatMul(n, w1) "
        "b = Add(a, b1) g = Gelu(b) c = MatMul(g, w2) d = Add(c, b2) y = Add(d, x) }",
        weights={"scale": (8,), "bias": (8,), "w1": (8, 16), "b1": (16,), "w2": (16, 8), "b2": (8,)},
        batches=BATCHES,
        essential=True,
    )
    yield text_case(
        "block-attention-dynamic-batch",
        "(float[N,5,8] x) => (float[N,5,8] y) { q = MatMul(x, w1) k = MatMul(x, w2) kt = Transpose<perm=[0,2,1]>(k) "
        "d = MatMul(q, kt) p = Softmax<axis=-1>(d) v = MatMul(p, x) y = Add(v, x) }",
        weights={"w1": (8, 8), "w2": (8, 8)},
        batches=BATCHES,
    )
    yield text_case(
        "block-centred-by-batch",
        "(float[N,8] x) => (float[N,8] y) { m = ReduceMean<keepdims=1>(x, first) c = Sub(x, m) y = MatMul(c, w) }",
        weights={"first": ints(0), "w": (8, 8)},
        batches=BATCHES,
    )
    yield text_case(
        "block-recurrent-dynamic-batch",
        "(float[4,N,6] x) => (float[4,1,N,5] y, float[1,N,5] last) { y, last = GRU<hidden_size=5>(x, w, r) }",
        weights={"w": (1, 15, 6), "r": (1, 15, 5)},
        batches=BATCHES,
    )
    yield text_case(
        "block-masked-attention",
        "(float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v, bool[1,1,4,4] mask) => (float[1,2,4,8] y) "
        "{ kt = Transpose<perm=[0,1,3,2]>(k) d = MatMul(q, kt) w = Where(mask, d, low) p = Softmax<axis=-1>(w) "
        "y = MatMul(p, v) }",
        weights={"low": np.float32(-1e9)},
    )
