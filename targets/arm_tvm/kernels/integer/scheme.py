"""How a model must be quantized for the integer kernels, and the gain in speed, as data.

The gains are quotients of instructions that one inference of the face network executes, fp32 with Winograd's algorithm
against int8: 40.6 M (ncnn's) to 21.6 M with sdot, 16.8 M with smmla. Of int8 by widening multiplies and of int8-weights
it is our own fp32 on a Cortex-A72, 31.6 M, against 39.5 M and 47.0 M. On x86-64 they are quotients of times of that
network on one core of a Xeon with AMX, rounded down: 3.1 ms in fp32, 1.05 ms with vpdpbusd, 0.53 ms with tdpbusd; with
vectors of 256 bits, as code for an Intel N100, 6.3 ms in fp32 and 1.7 ms with vpdpbusd.
"""

from __future__ import annotations

from compiler.target import OpScheme, PrecisionRule, QuantScheme, TensorFormat
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot
from targets.arm_tvm.kernels.integer.vectors import vectors_of

_WEIGHT = TensorFormat("int8", granularity="channel", narrow=True)
_ACTIVATIONS = ("Relu", "Clip")


def _scheme(name: str, activation: TensorFormat) -> QuantScheme:
    product = OpScheme(inputs={0: activation}, weights={1: _WEIGHT}, fuses=("Add", *_ACTIVATIONS))
    moves = OpScheme(inputs={0: activation}, quantizes_output=False)
    mean = OpScheme(inputs={0: activation}, fuses=_ACTIVATIONS)
    return QuantScheme(
        name=name,
        ops={
            **dict.fromkeys(("Conv", "Gemm", "MatMul"), product),
            **dict.fromkeys(("AveragePool", "GlobalAveragePool"), mean),
            **dict.fromkeys(("MaxPool", "Pad", "Flatten", "Reshape", "Squeeze"), moves),
            "Add": OpScheme(inputs={0: activation, 1: activation}, fuses=_ACTIVATIONS),
        },
    )


SCHEME = _scheme("arm-int8", TensorFormat("int8"))
"""int8 and symmetric throughout: sdot and smmla multiply signed numbers, and a zero point would cost a correction.

Weights are narrow (never −128), so that two products fit into int16 where a core has no dot product. Biases stay
float32: they are added to scaled sums. Residual sums and activations are computed in the convolution's registers.
"""
X86_SCHEME = _scheme("x86-int8", TensorFormat("int8", positive="uint8"))
"""The same, and eight bits for what is never negative: vpdpbusd multiplies unsigned activations, and the correction of
signed ones is a constant that its sums begin with."""

_STORED = OpScheme(weights={1: _WEIGHT})
WEIGHTS_SCHEME = QuantScheme(
    "arm-int8-weights", dict.fromkeys(("Conv", "Gemm", "MatMul"), _STORED), needs_calibration=False
)
"""Weights alone: activations, sums and biases stay float32."""
WEIGHTS_RULE = PrecisionRule(
    "int8-weights",
    "weights take a quarter of the memory; arithmetic stays float32, and no activation loses accuracy",
    converts_graph=False,
    tolerance="fp32",
    gain=0.67,
    scheme=WEIGHTS_SCHEME,
)

_REASONS: dict[Dot, tuple[float, str]] = {
    "smmla": (2.4, "smmla multiplies 32 pairs of int8 an instruction"),
    "sdot": (1.9, "sdot multiplies 16 pairs of int8 an instruction"),
    "widen": (
        0.8,
        "smaller, not faster: the core has no int8 dot product, and multiplies no more int16 than float32 an "
        "instruction, with Winograd's algorithm or without",
    ),
    "generic": (0.5, "smaller, not faster: its integer kernels are written for ARM, AVX512-VNNI and AVX-VNNI"),
    "amx_int8": (5.0, "tdpbusd multiplies 16384 pairs of int8 an instruction (AMX)"),
    "avx512_vnni": (2.5, "vpdpbusd multiplies 64 pairs of int8 an instruction (AVX512-VNNI)"),
    "avx_vnni": (3.5, "vpdpbusd multiplies 32 pairs of int8 an instruction (AVX-VNNI)"),
}


def int8_rule(dot: Dot) -> PrecisionRule:
    """The precision `int8` on a core that multiplies so."""
    gain, reason = _REASONS[dot]
    return PrecisionRule(
        "int8",
        reason,
        converts_graph=False,
        tolerance="int8",
        gain=gain,
        scheme=X86_SCHEME if vectors_of(dot).moved else SCHEME,
        width_multiple=BLOCK,
    )
