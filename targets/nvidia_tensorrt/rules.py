"""What TensorRT's ONNX parser takes and what its builder compiles, as data, by library and compute capability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compiler.target import Capability, OpRule, PrecisionRule
from targets.nvidia_tensorrt.quantized import FP8, INT4_WEIGHTS, INT8

AHEAD_OF_TIME = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities TensorRT-RTX builds for without the GPU."""

TURING = "7.5"

# Ada Lovelace: the first tensor cores that multiply 8-bit floats
_FP8_SINCE = 8.9

_OPSET_MAX = 27  # the newest that onnx 1.23 defines; the parser knows operators that came with it

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_TYPES = _FLOATS | {"INT32", "INT64", "INT8", "BOOL"}
_QUANTIZED = _FLOATS | {"INT8", "INT4", "FLOAT8E4M3FN"}

_OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BlackmanWindow CastLike Ceil Concat Constant ConstantOfShape
Cos Cosh CumSum DepthToSpace Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND
Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow
HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LeakyRelu Less LessOrEqual
Log LogSoftmax Loop LpNormalization Max Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow
RMSNormalization Reciprocal Relu Reshape ReverseSequence Round Scan Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
Softmax Softplus Softsign SpaceToDepth Split Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
Where Xor
"""

_REDUCTIONS = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""
_RECURRENT = ("GRU", "LSTM", "RNN")
_PRODUCTS = ("Einsum", "Gemm", "MatMul")
"""Operators that are computed as matrix products."""

_ATTENTION: Mapping[str, tuple[object, ...]] = {"softcap": (0.0,), "softmax_precision": ()}
_RECURRENT_ATTRIBUTES = {"layout": (0,), "input_forget": (0,)}
_WHOLE_AXES = tuple(tuple(range(rank)) for rank in range(1, 9))
"""All axes in order: what Resize means where it names none."""
_NO_DILATION = {"dilations": ((1,), (1, 1), (1, 1, 1))}
_RESIZE = {
    "antialias": (0,),
    "coordinate_transformation_mode": (
        "align_corners",
        "asymmetric",
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
    ),
    "axes": _WHOLE_AXES,
    "exclude_outside": (0,),
    "keep_aspect_ratio_policy": ("stretch",),
}

_SPECIAL: Mapping[str, OpRule] = {
    **dict.fromkeys(_REDUCTIONS.split(), OpRule(dtypes=_TYPES, constant_inputs=(1,))),
    "AveragePool": OpRule(dtypes=_TYPES, attributes=_NO_DILATION),
    "BatchNormalization": OpRule(dtypes=_TYPES, attributes={"training_mode": (0,)}, outputs_max=1),
    "Cast": OpRule(dtypes=_TYPES | {"UINT8"}),
    "Celu": OpRule(dtypes=frozenset({"FLOAT"})),
    "Clip": OpRule(dtypes=_TYPES - {"INT8"}),
    "Conv": OpRule(dtypes=_FLOATS),
    "ConvTranspose": OpRule(dtypes=_FLOATS),
    "DequantizeLinear": OpRule(dtypes=_QUANTIZED, zero_inputs=(2,)),
    "LayerNormalization": OpRule(dtypes=_TYPES, outputs_max=1),
    "LpPool": OpRule(dtypes=_TYPES, attributes={**_NO_DILATION, "p": (1, 2)}),
    "MaxPool": OpRule(dtypes=_TYPES, attributes={**_NO_DILATION, "storage_order": (0,)}, outputs_max=1),
    "QuantizeLinear": OpRule(dtypes=_QUANTIZED, zero_inputs=(2,)),
    "Range": OpRule(dtypes=frozenset({"INT32", "INT64"})),
    "Resize": OpRule(dtypes=_FLOATS | {"INT64"}, constant_inputs=(2,), attributes=_RESIZE),
    "ScatterElements": OpRule(dtypes=_TYPES, attributes={"reduction": ("none", "add")}),
    "ScatterND": OpRule(dtypes=_TYPES, attributes={"reduction": ("none",)}),
    "Squeeze": OpRule(dtypes=_TYPES, constant_inputs=(1,)),
    "Unsqueeze": OpRule(dtypes=_TYPES, constant_inputs=(1,)),
}


_WIDTHS = {"fp32": 4, "fp16": 8, "bf16": 8, "int8": 16, "fp8": 16, "int4-weights": 8}
"""Precision → channels that tensor cores take at once: 16 bytes of them (NVIDIA, Matrix Multiplication Background
User's Guide); of weights in 4 bits, which are computed in float16, as many as of those."""


def capability_of(library: str, compute_capability: str, *, tf32: bool) -> Capability:
    """What one library does on one compute capability.

    Args:
        library: `tensorrt-rtx` or `tensorrt`.
        compute_capability: Such as `8.9`.
        tf32: Whether float32 products may round their factors to TF32.
    """
    no_fp32_products = library == "tensorrt-rtx" and compute_capability == TURING
    return Capability(
        ops=_operators(no_fp32_products),
        precisions=tuple(
            replace(rule, width_multiple=_WIDTHS[rule.name])
            for rule in _precisions(compute_capability, tf32, no_fp32_products)
        ),
        dynamic_dims=True,
        opset_max=_OPSET_MAX,
        precision_refusals=_refusals(compute_capability),
    )


def _operators(no_fp32_products: bool) -> dict[str, OpRule]:
    left_out = frozenset({"FLOAT"}) if no_fp32_products else frozenset[str]()
    return {
        **{name: OpRule(dtypes=_TYPES) for name in _OPERATORS.split()},
        **{name: OpRule(dtypes=_FLOATS - left_out) for name in _PRODUCTS},
        "Attention": OpRule(dtypes=_FLOATS - left_out, attributes=_ATTENTION, inputs_max=4, outputs_max=1),
        **dict.fromkeys(_RECURRENT, OpRule((_FLOATS | {"INT32"}) - left_out, attributes=_RECURRENT_ATTRIBUTES)),
        **_SPECIAL,
    }


def _precisions(compute_capability: str, tf32: bool, no_fp32_products: bool) -> tuple[PrecisionRule, ...]:
    """In order of preference: float32 first, because an engine for another GPU is delivered without having been run."""
    reason = "factors of products are rounded to TF32, as target_options asks" if tf32 else "the model's own precision"
    fp32 = PrecisionRule("fp32", reason, converts_graph=False, tolerance="fp16" if tf32 else "fp32")
    fp16 = PrecisionRule(
        "fp16", "half the memory; tensor cores multiply it", converts_graph=True, tolerance="fp16", gain=3.0
    )
    bf16 = PrecisionRule("bf16", "half the memory at float32's range", converts_graph=True, tolerance="bf16", gain=3.0)
    if no_fp32_products:
        turing = f"TensorRT-RTX has no float32 matrix product on compute capability {TURING}, and tensor cores for this"
        first = PrecisionRule("fp16", turing, converts_graph=True, tolerance="fp16", gain=3.0)
        return first, fp32, *_few_bits(compute_capability)
    floats = (fp32, fp16, bf16) if _at_least(compute_capability, 8) else (fp32, fp16)
    return (*floats, *_few_bits(compute_capability))


def _few_bits(compute_capability: str) -> tuple[PrecisionRule, ...]:
    """What is quantized, most expected gain first."""
    int8 = PrecisionRule(
        "int8", "tensor cores multiply 8-bit integers", converts_graph=True, tolerance="int8", gain=5.0, scheme=INT8
    )
    fp8 = PrecisionRule(
        "fp8", "tensor cores multiply 8-bit floats", converts_graph=True, tolerance="int8", gain=4.5, scheme=FP8
    )
    int4 = PrecisionRule(
        "int4-weights",
        "an eighth of the weights' memory; arithmetic in float16",
        converts_graph=True,
        tolerance="fp16",
        gain=2.0,
        scheme=INT4_WEIGHTS,
    )
    return (int8, fp8, int4) if float(compute_capability) >= _FP8_SINCE else (int8, int4)


def _refusals(compute_capability: str) -> dict[str, str]:
    typed = "TensorRT networks are strongly typed: weights in float16 are computed in float16; ask for fp16"
    refusals = {"fp16-weights": typed}
    if not _at_least(compute_capability, 8):
        refusals["bf16"] = f"compute capability {compute_capability} does not compute in bfloat16 (8.0 and newer do)"
    if float(compute_capability) < _FP8_SINCE:
        refusals["fp8"] = f"compute capability {compute_capability} does not multiply 8-bit floats (8.9 and newer do)"
    return refusals


def _at_least(compute_capability: str, major: int) -> bool:
    return int(compute_capability.split(".")[0]) >= major
