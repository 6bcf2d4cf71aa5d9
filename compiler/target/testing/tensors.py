"""Cases of what moves tensors about and of elementwise and reducing arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.target.testing.case import BATCHES, Case, Weight, ints, text_case


def movement() -> Iterator[Case]:
    """Cases of this kind."""

    def move(name: str, body: str, out: str, *, essential: bool = False, **weights: Weight) -> Case:
        text = f"(float[2,4,6] x) => (float[{out}] y) {{ {body} }}"
        return text_case(name, text, weights=weights, essential=essential)

    yield move("concat", "r = Relu(x) y = Concat<axis=1>(x, r, x)", "2,12,6", essential=True)
    yield move("concat-last", "r = Relu(x) y = Concat<axis=-1>(r, x)", "2,4,12")
    yield move(
        "split", "a, b, c = Split<axis=2, num_outputs=3>(x) s = Sub(a, b) y = Mul(s, c)", "2,4,2", essential=True
    )
    yield move(
        "split-sizes",
        "a, b = Split<axis=1>(x, sizes) y = Concat<axis=1>(b, a)",
        "2,4,6",
        sizes=ints(1, 3),
    )
    yield move(
        "slice",
        "y = Slice(x, starts, ends, axes, steps)",
        "2,2,3",
        essential=True,
        starts=ints(1, 0),
        ends=ints(3, 6),
        axes=ints(1, 2),
        steps=ints(1, 2),
    )
    yield move(
        "slice-backwards",
        "y = Slice(x, starts, ends, axes, steps)",
        "2,4,6",
        starts=ints(-1),
        ends=ints(-100),
        axes=ints(2),
        steps=ints(-1),
    )
    yield move(
        "pad-constant",
        "y = Pad(x, pads, value)",
        "2,7,8",
        essential=True,
        pads=ints(0, 1, 2, 0, 2, 0),
        value=np.float32(0.5),
    )
    yield move("pad-reflect", 'y = Pad<mode="reflect">(x, pads)', "2,4,10", pads=ints(0, 0, 2, 0, 0, 2))
    yield move("pad-edge", 'y = Pad<mode="edge">(x, pads)', "2,6,6", pads=ints(0, 1, 0, 0, 1, 0))
    yield move("reshape", "y = Reshape(x, shape)", "2,3,8", essential=True, shape=ints(0, 3, -1))
    yield move("flatten", "y = Flatten<axis=1>(x)", "2,24", essential=True)
    yield move("transpose", "y = Transpose<perm=[2,0,1]>(x)", "6,2,4", essential=True)
    yield move(
        "squeeze-unsqueeze", "u = Unsqueeze(x, ax) r = Relu(u) y = Squeeze(r, ax)", "2,4,6", ax=ints(1), essential=True
    )
    yield move("expand", "y = Expand(x, shape)", "3,2,4,6", shape=ints(3, 1, 1, 1))
    yield move("tile", "y = Tile(x, repeats)", "2,8,18", repeats=ints(1, 2, 3))
    yield move("gather", "y = Gather<axis=1>(x, index)", "2,3,6", index=ints(3, 0, -2), essential=True)
    yield move("gather-scalar", "y = Gather<axis=2>(x, index)", "2,4", index=np.int64(0))
    yield move("gather-elements", "y = GatherElements<axis=2>(x, index)", "2,4,2", index=np.tile(ints(5, 0), (2, 4, 1)))
    yield text_case(
        "embedding",
        "(int64[2,5] ids) => (float[2,5,8] y) { y = Gather(table, ids) }",
        weights={"table": (3, 8)},
        essential=True,
    )
    yield text_case(
        "embedding-quantized",
        "(int64[2,5] ids) => (float[5,2,8] y) { q = Gather(table, ids) t = Transpose<perm=[1,0,2]>(q) "
        "y = DequantizeLinear(t, scale, zero) }",
        weights={
            "table": np.arange(100, 124, dtype=np.uint8).reshape(3, 8),
            "scale": np.array(0.05, np.float32),
            "zero": np.array(117, np.uint8),
        },
        essential=True,
    )
    yield text_case(
        "resize-nearest",
        '(float[1,3,4,5] x) => (float[1,3,8,10] y) { y = Resize<mode="nearest", '
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , scales) }',
        weights={"scales": np.array([1, 1, 2, 2], dtype=np.float32)},
        essential=True,
    )
    yield text_case(
        "resize-linear",
        '(float[1,3,4,5] x) => (float[1,3,8,10] y) { y = Resize<mode="linear">(x, , , sizes) }',
        weights={"sizes": ints(1, 3, 8, 10)},
        essential=True,
    )
    yield text_case(
        "resize-linear-corners",
        '(float[1,3,4,5] x) => (float[1,3,7,9] y) { y = Resize<mode="linear", coordinate_transformation_mode='
        '"align_corners">(x, , , sizes) }',
        weights={"sizes": ints(1, 3, 7, 9)},
    )
    yield text_case("depth-to-space", "(float[1,8,3,3] x) => (float[1,2,6,6] y) { y = DepthToSpace<blocksize=2>(x) }")
    yield text_case(
        "shuffle-channels",
        "(float[2,6,3,3] x) => (float[2,6,3,3] y) "
        "{ a = Reshape(x, split) b = Transpose<perm=[0,2,1,3,4]>(a) y = Reshape(b, join) }",
        weights={"split": ints(0, 2, 3, 3, 3), "join": ints(0, 6, 3, 3)},
    )


def arithmetic() -> Iterator[Case]:
    """Cases of this kind."""
    for name, call, essential in (
        ("reduce-mean", "ReduceMean<keepdims=1>(x, axes)", True),
        ("reduce-mean-drop", "ReduceMean<keepdims=0>(x, axes)", False),
        ("reduce-sum", "ReduceSum<keepdims=1>(x, axes)", True),
        ("reduce-max", "ReduceMax<keepdims=1>(x, axes)", True),
        ("reduce-l2", "ReduceL2<keepdims=1>(x, axes)", True),
    ):
        out = "float[2,3]" if "drop" in name else "float[2,3,1,1]"
        yield text_case(
            name,
            f"(float[2,3,4,5] x) => ({out} y) {{ y = {call} }}",
            weights={"axes": ints(2, 3)},
            essential=essential,
        )
    yield text_case(
        "l2-normalize",
        "(float[3,8] x) => (float[3,8] y) { n = ReduceL2<keepdims=1>(x, axes) m = Max(n, floor) y = Div(x, m) }",
        weights={"axes": ints(1), "floor": np.float32(1e-12)},
    )
    yield text_case(
        "residual-add",
        "(float[2,4,3] a, float[2,4,3] b) => (float[2,4,3] y) { s = Add(a, b) y = Relu(s) }",
        essential=True,
    )
    yield text_case("add-broadcast", "(float[2,4,1] a, float[4,3] b) => (float[2,4,3] y) { y = Add(a, b) }")
    yield text_case(
        "div-broadcast",
        "(float[2,4,3] a, float[4,1] b) => (float[2,4,3] y) { p = Exp(b) y = Div(a, p) }",
        essential=True,
    )
    yield text_case(
        "pow-sqrt",
        "(float[2,4] x) => (float[2,4] y) { p = Pow(x, two) q = Add(p, one) y = Sqrt(q) }",
        weights={"two": np.float32(2), "one": np.float32(1)},
        essential=True,
    )
    yield text_case(
        "min-max", "(float[2,4] a, float[4] b) => (float[2,4] lo, float[2,4] hi) { lo = Min(a, b) hi = Max(a, b) }"
    )
    yield text_case(
        "unary-chain",
        "(float[3,4] x) => (float[3,4] y) "
        "{ a = Abs(x) b = Neg(a) c = Exp(b) d = Log(c) e = Reciprocal(c) y = Sub(e, d) }",
    )
    yield text_case(
        "rounding",
        "(float[3,4] x) => (float[3,4] f, float[3,4] c, float[3,4] r) { f = Floor(x) c = Ceil(x) r = Round(x) }",
    )
    yield text_case(
        "where-compare",
        "(float[2,4] a, float[2,4] b) => (float[2,4] y) { c = Greater(a, b) d = Not(c) y = Where(d, a, b) }",
        essential=True,
    )
    yield text_case(
        "bool-output", "(float[2,4] a, float[2,4] b) => (bool[2,4] y) { c = Less(a, b) d = Equal(a, a) y = And(c, d) }"
    )
    yield text_case(
        "cast",
        "(float[2,4] x) => (int64[2,4] i, float[2,4] f) { i = Cast<to=7>(x) b = Cast<to=9>(x) f = Cast<to=1>(b) }",
        essential=True,
    )
    yield text_case("arg-max", "(float[3,7] x) => (int64[3,1] y) { y = ArgMax<axis=1, keepdims=1>(x) }")
    yield text_case(
        "top-k",
        "(float[3,7] x) => (float[3,2] v, int64[3,2] i) { v, i = TopK<axis=1>(x, k) }",
        weights={"k": ints(2)},
    )
    yield text_case("cumsum", "(float[3,7] x) => (float[3,7] y) { y = CumSum(x, axis) }", weights={"axis": np.int64(1)})
    yield text_case(
        "int64-arithmetic",
        "(int64[5] a, int64[5] b) => (int64[5] y) { s = Add(a, b) m = Mul(s, a) y = Sub(m, b) }",
    )
    yield text_case(
        "two-outputs", "(float[2,4] x) => (float[2,4] a, float[2,4] b) { a = Relu(x) b = Sigmoid(a) }", essential=True
    )
    yield text_case("input-as-output", "(float[2,4] x) => (float[2,4] y, float[2,4] z) { y = Identity(x) z = Neg(x) }")
    yield text_case(
        "shape-arithmetic",
        "(float[N,4,6] x) => (float[N,24] y) { s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, ax) "
        "t = Concat<axis=0>(u, rest) y = Reshape(x, t) }",
        weights={"zero": np.int64(0), "ax": ints(0), "rest": ints(-1)},
        batches=BATCHES,
        essential=True,
    )
