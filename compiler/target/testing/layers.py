"""Cases of single layers: convolutions, pools, matrix products, activations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.target.testing.case import BATCHES, Case, text_case


def convolutions() -> Iterator[Case]:
    """Cases of this kind."""

    def conv(
        name: str, attributes: str, weight: tuple[int, ...], out: str, *, size: str = "9,11", **more: bool
    ) -> Case:
        text = f"(float[2,6,{size}] x) => (float[{out}] y) {{ y = Conv{attributes}(x, w, b) }}"
        return text_case(f"conv-{name}", text, weights={"w": weight, "b": (weight[0],)}, **more)  # type: ignore[arg-type]

    yield conv("3x3-same", "<pads=[1,1,1,1]>", (8, 6, 3, 3), "2,8,9,11", essential=True)
    yield conv("1x1", "", (8, 6, 1, 1), "2,8,9,11", essential=True)
    yield conv("5x3-valid", "", (4, 6, 5, 3), "2,4,5,9")
    yield conv("stride", "<strides=[2,2], pads=[1,1,1,1]>", (8, 6, 3, 3), "2,8,5,6", essential=True)
    yield conv("7x7-stem", "<strides=[2,2], pads=[3,3,3,3]>", (8, 6, 7, 7), "2,8,5,6")
    yield conv("dilated", "<dilations=[2,2], pads=[2,2,2,2]>", (8, 6, 3, 3), "2,8,9,11")
    yield conv("group", "<group=2, pads=[1,1,1,1]>", (8, 3, 3, 3), "2,8,9,11", essential=True)
    yield conv("depthwise", "<group=6, pads=[1,1,1,1]>", (6, 1, 3, 3), "2,6,9,11", essential=True)
    yield conv("depthwise-multiplier", "<group=6, pads=[1,1,1,1]>", (12, 1, 3, 3), "2,12,9,11")
    yield conv("asymmetric-pad", "<pads=[0,1,2,0], strides=[2,1]>", (8, 6, 3, 3), "2,8,5,10", essential=True)
    yield conv("same-upper", '<auto_pad="SAME_UPPER", strides=[2,2]>', (8, 6, 3, 3), "2,8,5,6")
    yield text_case(
        "conv-no-bias",
        "(float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w) }",
        weights={"w": (4, 3, 3, 3)},
        essential=True,
    )
    yield text_case(
        "conv-1d",
        "(float[1,4,16] x) => (float[1,8,16] y) { y = Conv<pads=[1,1]>(x, w, b) }",
        weights={"w": (8, 4, 3), "b": (8,)},
    )
    yield text_case(
        "conv-transpose",
        "(float[1,4,5,5] x) => (float[1,6,10,10] y) { y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w, b) }",
        weights={"w": (4, 6, 4, 4), "b": (6,)},
    )
    yield text_case(
        "conv-dynamic-batch",
        "(float[N,3,8,8] x) => (float[N,4,8,8] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c) }",
        weights={"w": (4, 3, 3, 3), "b": (4,)},
        batches=BATCHES,
        essential=True,
    )
    yield text_case(
        "conv-dynamic-width",
        "(float[1,4,6,N] x) => (float[1,8,6,N] y) { y = Conv<pads=[1,1,1,1]>(x, w, b) }",
        weights={"w": (8, 4, 3, 3), "b": (8,)},
        batches=(5, 6, 7),
    )
    yield text_case(
        "batch-normalization",
        "(float[2,5,4,4] x) => (float[2,5,4,4] y) { y = BatchNormalization(x, scale, bias, mean, var) }",
        weights={"scale": (5,), "bias": (5,), "mean": (5,), "var": np.linspace(0.5, 2, 5, dtype=np.float32)},
        essential=True,
    )
    yield text_case(
        "instance-normalization",
        "(float[2,5,4,4] x) => (float[2,5,4,4] y) { y = InstanceNormalization(x, scale, bias) }",
        weights={"scale": (5,), "bias": (5,)},
    )


def pools() -> Iterator[Case]:
    """Cases of this kind."""

    def pool(name: str, call: str, out: str, *, essential: bool = False) -> Case:
        text = f"(float[2,3,9,9] x) => (float[2,3,{out}] y) {{ y = {call} }}"
        return text_case(name, text, essential=essential)

    yield pool("max-pool", "MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "4,4", essential=True)
    yield pool("max-pool-pad", "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "5,5", essential=True)
    yield pool("max-pool-ceil", "MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", "5,5", essential=True)
    yield pool("average-pool", "AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", "4,4", essential=True)
    yield pool("average-pool-pad", "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "5,5")
    yield pool(
        "average-pool-count-pad",
        "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        "5,5",
    )
    yield pool("average-pool-ceil", "AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", "5,5")
    yield pool("global-average-pool", "GlobalAveragePool(x)", "1,1", essential=True)
    yield pool("global-max-pool", "GlobalMaxPool(x)", "1,1")


def products() -> Iterator[Case]:
    """Cases of this kind."""
    yield text_case(
        "gemm",
        "(float[3,10] x) => (float[3,7] y) { y = Gemm<transB=1>(x, w, b) }",
        weights={"w": (7, 10), "b": (7,)},
        essential=True,
    )
    yield text_case(
        "gemm-alpha-beta",
        "(float[10,3] x) => (float[3,7] y) { y = Gemm<alpha=0.5, beta=2.0, transA=1>(x, w, b) }",
        weights={"w": (10, 7), "b": (3, 1)},
    )
    yield text_case(
        "matmul-weights",
        "(float[2,5,8] x) => (float[2,5,6] y) { y = MatMul(x, w) }",
        weights={"w": (8, 6)},
        essential=True,
    )
    yield text_case(
        "matmul-batched",
        "(float[2,3,4,5] a, float[2,3,5,6] b) => (float[2,3,4,6] y) { y = MatMul(a, b) }",
        essential=True,
    )
    yield text_case("matmul-broadcast", "(float[2,3,4,5] a, float[3,5,6] b) => (float[2,3,4,6] y) { y = MatMul(a, b) }")
    yield text_case("matmul-vector", "(float[2,4,5] a, float[5] b) => (float[2,4] y) { y = MatMul(a, b) }")
    yield text_case(
        "einsum", '(float[2,3,4] a, float[2,4,5] b) => (float[2,3,5] y) { y = Einsum<equation="bij,bjk->bik">(a, b) }'
    )


def activations() -> Iterator[Case]:
    """Cases of this kind."""
    essential = {"relu", "clip", "prelu", "hard-swish", "hard-sigmoid", "sigmoid", "tanh", "gelu", "erf", "softmax"}
    for name, call in {
        "relu": "Relu(t)",
        "clip": "Clip(t, low, high)",
        "clip-above": "Clip(t, , high)",
        "leaky-relu": "LeakyRelu<alpha=0.2>(t)",
        "prelu": "PRelu(t, slope)",
        "hard-swish": "HardSwish(t)",
        "hard-sigmoid": "HardSigmoid<alpha=0.1666667, beta=0.5>(t)",
        "sigmoid": "Sigmoid(t)",
        "tanh": "Tanh(t)",
        "gelu": "Gelu(t)",
        "gelu-tanh": 'Gelu<approximate="tanh">(t)',
        "erf": "Erf(t)",
        "elu": "Elu<alpha=1.5>(t)",
        "softplus": "Softplus(t)",
        "mish": "Mish(t)",
        "softmax": "Softmax<axis=-1>(t)",
        "softmax-channels": "Softmax<axis=1>(t)",
        "log-softmax": "LogSoftmax<axis=1>(t)",
    }.items():
        yield text_case(
            name,
            f"(float[2,4,3,5] x) => (float[2,4,3,5] y) {{ t = Mul(x, three) y = {call} }}",
            weights={
                "three": np.float32(3),
                **({"low": np.float32(-1)} if "low" in call else {}),
                **({"high": np.float32(1.5)} if "high" in call else {}),
                **({"slope": (4, 1, 1)} if "slope" in call else {}),
            },
            essential=name in essential,
        )
    yield text_case("silu", "(float[2,4,3] x) => (float[2,4,3] y) { s = Sigmoid(x) y = Mul(x, s) }", essential=True)
