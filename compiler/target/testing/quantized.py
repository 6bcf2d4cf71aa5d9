"""Cases of quantized layers: QuantizeLinear and DequantizeLinear around them, with zero points and odd sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.target.testing.case import Case, Weight, text_case

_STEP, _WEIGHT_STEP = np.float32(0.03), np.float32(0.02)


def quantized_cases() -> list[Case]:
    """Cases for targets with an integer precision; run them with `precision="int8"`."""
    return list(_cases())


def _cases() -> Iterator[Case]:
    yield _layer("conv-stride", "Conv<strides=[2,1], pads=[1,0,1,2]>(a, w, b)", (21, 20, 3, 3), "2,21,5,11")
    yield _layer("conv-relu", "Conv(a, w, b) y = Relu(f)", (40, 20, 1, 1), "2,40,9,11")
    yield _layer("depthwise", "Conv<group=20, pads=[1,1,1,1]>(a, w, b)", (20, 1, 3, 3), "2,20,9,11")
    yield _layer(
        "residual", "Conv<pads=[2,2,2,2], dilations=[2,2]>(a, w, b) y = Add(f, a)", (20, 20, 3, 3), "2,20,9,11"
    )
    yield _layer("matmul", "MatMul(a, w) y = Add(f, b)", (37, 19), "2,5,19", given="2,5,37")


def _layer(name: str, body: str, weight: tuple[int, ...], out: str, *, given: str = "2,20,9,11") -> Case:
    """One layer on a tensor of uint8 with a zero point; its result is int8 with another."""
    random = np.random.default_rng(len(name))
    outputs, inputs = (weight[0], np.prod(weight[1:])) if len(weight) == 4 else (weight[1], weight[0])
    result = "y" if " y = " in body else "f"
    text = (
        f"(float[{given}] x) => (float[{out}] z) {{ "
        "q = QuantizeLinear(x, step, zero) a = DequantizeLinear(q, step, zero) "
        f"w = DequantizeLinear(v, weight_step, weight_zero) f = {body} "
        f"r = QuantizeLinear({result}, step, shift) z = DequantizeLinear(r, step, shift) }}"
    )
    weights: dict[str, Weight] = {
        "v": random.integers(-127, 128, weight).astype(np.int8),
        "b": random.standard_normal(outputs).astype(np.float32),
        "step": _STEP,
        "zero": np.uint8(111),
        "shift": np.int8(-7),
        "weight_step": _WEIGHT_STEP / np.float32(np.sqrt(inputs)),
        "weight_zero": np.int8(0),
    }
    return text_case(f"int8-{name}", text, weights=weights, tolerance="int8")
