"""What ONNX Runtime's CPU execution provider computes, as data."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from compiler.target import (
    BlockFormat,
    Capability,
    HardwareProfile,
    OpRule,
    OpScheme,
    PrecisionRule,
    QuantScheme,
    TensorFormat,
    WeightChoices,
    onnx_runtime_operators,
)

DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""

_OPSET_MAX = 27

_RULES = {name: OpRule(attributes={"layout": (0,)}) for name in ("GRU", "LSTM", "RNN")}

_ACTIVATION = TensorFormat("uint8", symmetric=False)
_WEIGHT = TensorFormat("int8", granularity="channel", narrow=True)
_CLIPS = ("Relu", "Clip")
"""What QuantizeLinear does anyway where its zero point is the least value: ONNX Runtime leaves them out before it."""

_PRODUCT = OpScheme({0: _ACTIVATION}, {1: _WEIGHT}, float_bias=False, fuses=_CLIPS)
_ELEMENTWISE = OpScheme({0: _ACTIVATION, 1: _ACTIVATION}, fuses=_CLIPS)
_POOL = OpScheme({0: _ACTIVATION})
_SAME_SCALE = OpScheme({0: _ACTIVATION}, quantizes_output=False)

INT8 = QuantScheme(
    "onnxruntime-int8",
    {
        "Conv": _PRODUCT,
        "Gemm": _PRODUCT,
        "MatMul": OpScheme({0: _ACTIVATION, 1: _ACTIVATION}, {1: _WEIGHT}),
        "Add": _ELEMENTWISE,
        "Mul": _ELEMENTWISE,
        "AveragePool": _POOL,
        "GlobalAveragePool": _POOL,
        **dict.fromkeys(("Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"), _SAME_SCALE),
    },
)
"""Activations unsigned with zero points, weights signed by channel: the form its kernels are written for (ONNX Runtime,
Quantize ONNX Models, "Data type selection")."""

_WIDE = BlockFormat(8, 64, symmetric=True)
_MIDDLE = BlockFormat(6, 64)
_NARROW = BlockFormat(4, 32)

WEIGHTS = QuantScheme(
    "onnxruntime-weights",
    {},
    weights=WeightChoices((_NARROW, BlockFormat(4, 64), _MIDDLE, _WIDE), (_WIDE, _MIDDLE, _NARROW)),
    times={4: 1.0, 6: 22.0, 8: 11.0},
)
"""What MatMulNBits and GatherBlockQuantized read; blocks of 64 are a part of every usual width, and none is padded."""


WEIGHTS_INT8 = replace(
    WEIGHTS, name="onnxruntime-weights-int8", rounds_activations=True, times={4: 1.0, 6: 2.0, 8: 1.5}
)
"""The same with activations rounded block by block: MatMulNBits at its accuracy level 4.

Times are of one row by 576 × 1536 weights that come from memory, with AVX-512 VNNI (benchmarks/weight_kernels.json).
Of float32 activations only 4 bits have a fast kernel.
"""


VNNI = ("avx512_vnni", "avx_vnni")
_ARM = ("asimd", "neon")

IN_INTEGERS = ("int8", "int4-weights-int8")
"""Precisions whose products are summed in integers."""


def capability_of(profile: HardwareProfile) -> Capability:
    """The capability on one CPU: the operators are the same for all, 8 bits go by the instruction set."""
    isa = set(profile.cpu.isa if profile.cpu else ())
    ops = {name: _RULES.get(name, OpRule()) for name in sorted(onnx_runtime_operators())}
    fp32 = PrecisionRule("fp32", "the model's own precision", converts_graph=False, tolerance="fp32")
    int8 = PrecisionRule(
        "int8",
        "the CPU adds products of 8-bit integers without saturation",
        converts_graph=True,
        tolerance="int8",
        gain=2.5,
        scheme=INT8,
    )
    weights = PrecisionRule(
        "int4-weights",
        "weights of 4, 6 and 8 bits in blocks, as limits on memory and accuracy allow; activations in float32",
        converts_graph=False,
        tolerance="int8",
        scheme=WEIGHTS,
    )
    rounded = PrecisionRule(
        "int4-weights-int8",
        "the same weights; activations rounded to 8 bits while the model runs, sums in integers",
        converts_graph=False,
        tolerance="quantized",
        gain=3.0,
        scheme=WEIGHTS_INT8,
        form_of=weights.name,
    )
    reason = f"the CPU of {profile.name} has neither {' nor '.join(VNNI)}: sums of two products saturate at 16 bits"
    return Capability(
        ops=ops,
        precisions=(fp32, int8, rounded, weights) if multiplies_8_bits(isa) else (fp32, weights),
        precision_refusals={} if multiplies_8_bits(isa) else dict.fromkeys(IN_INTEGERS, reason),
        dynamic_dims=True,
        opset_max=_OPSET_MAX,
    )


def multiplies_8_bits(isa: Set[str]) -> bool:
    """Whether unsigned times signed 8-bit products are exact: with VNNI, and on ARM."""
    return not isa.isdisjoint((*VNNI, *_ARM))
