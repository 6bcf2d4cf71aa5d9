"""What OpenVINO's ONNX frontend reads and its CPU plugin computes, as data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set
from dataclasses import replace

from compiler.target import Capability, HardwareProfile, OpRule, PrecisionRule
from targets.intel_openvino.quantized import INT8, WEIGHTS

_OPS = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil
    Celu CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos
    Cosh CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid
    HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round Scan ScatterElements ScatterND Selu Shape
    Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
    Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Where Xor
"""
"""Operators the ONNX frontend converts, without random ones (no result to compare), losses, those of sequences,
and the Fourier transforms, whose axes it confuses."""

_DTYPES = frozenset({"FLOAT", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "BOOL"})
"""Without DOUBLE, which the CPU plugin silently computes in float32."""


def _activations(count: int) -> tuple[tuple[str, ...], ...]:
    """The activations that a recurrent layer may have: of both directions the same, the second's are ignored."""
    single = tuple(itertools.product(("Sigmoid", "Tanh", "Relu"), repeat=count))
    return (*single, *(names * 2 for names in single))


_RULES = {
    "Attention": OpRule(
        _DTYPES, attributes={"left_window_size": (-1,), "right_window_size": (-1,)}, outputs_max=3
    ),  # windows are ignored, and so is the mask in the fourth output
    "BitShift": OpRule(frozenset({"UINT8", "UINT16", "UINT32"})),  # signed shifts are computed as unsigned ones
    "Cast": OpRule(_DTYPES | {"DOUBLE"}),  # in and out of the model; between them float64 is computed as float32
    "Celu": OpRule(frozenset({"FLOAT"})),
    "DequantizeLinear": OpRule(_DTYPES | {"UINT4", "INT4"}),  # weights in blocks
    "Dropout": OpRule(_DTYPES, constant_inputs=(2,)),
    "GRU": OpRule(_DTYPES, attributes={"layout": (0,), "activations": _activations(2)}),
    "GridSample": OpRule(_DTYPES, rank_max=4),
    "LSTM": OpRule(
        _DTYPES, attributes={"layout": (0,), "input_forget": (0,), "activations": _activations(3)}, inputs_max=7
    ),  # peepholes, the eighth, are ignored
    "Pad": OpRule(_DTYPES, attributes={"mode": ("constant", "edge", "reflect")}),
    "QuantizeLinear": OpRule(_DTYPES - {"UINT16"}),  # rounds ties away from even there
    "RNN": OpRule(_DTYPES, attributes={"layout": (0,), "activations": _activations(1)}),
    "ReduceLogSum": OpRule(_DTYPES, constant_inputs=(1,)),
    "Resize": OpRule(
        _DTYPES,
        attributes={
            "antialias": (0,),
            "coordinate_transformation_mode": (
                "half_pixel",
                "pytorch_half_pixel",
                "align_corners",
                "asymmetric",
                "tf_half_pixel_for_nn",
            ),
            "exclude_outside": (0,),
            "keep_aspect_ratio_policy": ("stretch",),
        },
    ),
    "RoiAlign": OpRule(_DTYPES, attributes={"mode": ("avg",)}),
    "SpaceToDepth": OpRule(_DTYPES, attributes={"mode": ("DCR",)}),
    "Tile": OpRule(_DTYPES, constant_inputs=(1,)),  # with repeats given at run time it leaves memory unwritten
    "Unsqueeze": OpRule(_DTYPES, constant_inputs=(1,)),
}
"""What the frontend converts to something else than the operator means, or the CPU plugin does not compute."""

_OPSET_MAX = 28

PRECISION_ISA = {
    "bf16": ("avx512_bf16", "amx_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8"),
}
"""Precision → the flags of which one is enough to compute in it. Without VNNI, sums of two products of 8 bits saturate
at 16 bits."""


_LANES = {"avx512f": 16, "avx2": 8}
"""Flag → float32 lanes of its vectors: oneDNN blocks channels by as many, in every precision (nChw16c, nChw8c)."""


def capability_of(profile: HardwareProfile) -> Capability:
    """The capability on one CPU: all have the same operators, the precisions go by the instruction set."""
    isa = set(profile.cpu.isa if profile.cpu else ())
    return Capability(
        ops={name: _RULES.get(name, OpRule(_DTYPES)) for name in _OPS.split()},
        precisions=tuple(
            replace(rule, width_multiple=_width_multiple(isa)) for rule in _precisions() if computes(rule.name, isa)
        ),
        precision_refusals={
            name: f"the CPU of {profile.name} has {'neither ' + ' nor '.join(flags)}"
            for name, flags in PRECISION_ISA.items()
            if not computes(name, isa)
        },
        dynamic_dims=True,
        opset_max=_OPSET_MAX,
    )


def computes(precision: str, isa: Set[str]) -> bool:
    """Whether a CPU with these flags has arithmetic of that precision."""
    return precision not in PRECISION_ISA or not isa.isdisjoint(PRECISION_ISA[precision])


def _width_multiple(isa: Set[str]) -> int:
    return next((lanes for flag, lanes in _LANES.items() if flag in isa), 4)


def _precisions() -> Iterator[PrecisionRule]:
    yield PrecisionRule("fp32", "every CPU computes in float32", converts_graph=False, tolerance="fp32")
    bf16, fp16, int8 = (" or ".join(PRECISION_ISA[name]) for name in ("bf16", "fp16", "int8"))
    yield PrecisionRule(
        "bf16", f"the CPU multiplies bfloat16 ({bf16})", converts_graph=False, tolerance="bf16", gain=2.0
    )
    yield PrecisionRule(
        "fp16", f"the CPU multiplies float16 ({fp16})", converts_graph=False, tolerance="fp16", gain=2.0
    )
    yield PrecisionRule(
        "int8",
        f"the CPU multiplies 8-bit integers ({int8})",
        converts_graph=True,
        tolerance="int8",
        gain=3.0,
        scheme=INT8,
    )
    yield PrecisionRule(
        "int4-weights",
        "weights of 4 and 8 bits in blocks, as limits on memory and accuracy allow; activations in 8 bits by group",
        converts_graph=False,
        tolerance="int8",
        gain=2.0,
        scheme=WEIGHTS,
    )
    yield PrecisionRule(
        "fp16-weights", "half the size; arithmetic stays float32", converts_graph=False, tolerance="fp16"
    )
