"""Operators and precisions of this target, as data: TVM's ONNX importer, less what TVM was seen to get wrong.

Quantized models run in integers where `targets.arm_tvm.kernels.integer` has a kernel for what stands between
DequantizeLinear and QuantizeLinear; TVM imports the rest of them as float arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from compiler.target import (
    BlockFormat,
    Capability,
    OpRule,
    PrecisionRule,
    QuantScheme,
    Refusal,
    WeightChoices,
    op_key,
)
from targets.arm_tvm.graph.recurrent import recurrent_reason
from targets.arm_tvm.kernels.integer.scheme import WEIGHTS_RULE, int8_rule
from targets.arm_tvm.kernels.integer.specs import ARM_DOTS, Dot
from targets.arm_tvm.kernels.machine import Bfloat16

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET_MAX = 28
_NUMBERS = frozenset({"FLOAT", "INT64", "INT32"})
_ANY = _NUMBERS | {"BOOL"}
_QUANTIZED = _ANY | {"INT8", "UINT8"}
_FLOAT = frozenset({"FLOAT"})
_INTEGERS = frozenset({"INT64", "INT32"})

_FLOAT_OPS = """
    Acos Acosh Asin Asinh Atan Atanh AveragePool Ceil Conv Cos Cosh Elu Erf Exp Floor Gelu Gemm GlobalAveragePool
    GlobalMaxPool HardSigmoid HardSwish InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax LpPool
    MaxPool MeanVarianceNormalization Mish PRelu RMSNormalization Reciprocal Round Selu Shrink Sigmoid Sin Sinh Softmax
    Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Dropout Hardmax
"""
"""Dropout here also keeps out its mask output and its training switch, which are booleans."""

_NUMBER_OPS = """
    Abs Add ArgMax ArgMin Clip Div MatMul Max Mean Min Mul Neg Relu Sign Sub Sum
"""

_ANY_OPS = """
    And Concat Constant DepthToSpace Equal Flatten GatherElements GatherND Greater GreaterOrEqual Identity
    IsNaN Less LessOrEqual Not Or ScatterElements ScatterND Trilu Where Xor
"""

_MOVING_OPS = "Gather Transpose"
"""Also of integers: a quantized table is looked up, and its rows are moved, before they are dequantized."""

_FLOAT_REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceSumSquare"
_REDUCTIONS = "CumSum ReduceMax ReduceMin ReduceProd ReduceSum"
_RESHAPING = "Expand Squeeze Unsqueeze"
"""Operators whose second input is an axis, axes or a shape, which must be constants: the shapes depend on them."""

_RECURRENT = OpRule(
    _FLOAT | {"INT32"},
    constant_inputs=(1, 2, 3, 7),
    attributes={"layout": (0,), "input_forget": (0,)},
    # Before opset 7 the operators had other inputs and attributes.
    opset_min=7,
)

_RULES = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RECURRENT),
    "BatchNormalization": OpRule(_FLOAT, attributes={"training_mode": (0,)}),
    **dict.fromkeys(("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"), OpRule(_INTEGERS)),
    "Cast": OpRule(_QUANTIZED | {"DOUBLE", "FLOAT16"}),
    "ConstantOfShape": OpRule(_ANY, constant_inputs=(0,)),
    "ConvTranspose": OpRule(_FLOAT, attributes={"output_shape": ()}),
    "DequantizeLinear": OpRule(_QUANTIZED, attributes={"block_size": (0,)}),
    "Einsum": OpRule(_FLOAT),
    "GridSample": OpRule(_FLOAT, rank_max=4),
    # Before opset 21 its scale and bias were per group; they are per channel now.
    "GroupNormalization": OpRule(_FLOAT, opset_min=21),
    "IsInf": OpRule(_FLOAT | {"BOOL"}, attributes={"detect_negative": (1,), "detect_positive": (1,)}),
    "Mod": OpRule(_INTEGERS),
    "Pad": OpRule(_ANY, constant_inputs=(1, 2, 3), attributes={"mode": ("constant", "edge", "reflect")}),
    "Pow": OpRule(_FLOAT),
    "QuantizeLinear": OpRule(_QUANTIZED, attributes={"block_size": (0,), "saturate": (1,)}),
    "Reshape": OpRule(_ANY, constant_inputs=(1,)),
    "Resize": OpRule(
        _NUMBERS,
        constant_inputs=(1, 2, 3),
        rank_max=4,
        attributes={
            "mode": ("nearest", "linear"),
            "coordinate_transformation_mode": ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"),
            "antialias": (0,),
            "axes": (),
        },
    ),
    "ReverseSequence": OpRule(_ANY),
    "RoiAlign": OpRule(_NUMBERS, attributes={"mode": ("avg",)}),
    "Slice": OpRule(_ANY, constant_inputs=(1, 2, 3, 4)),
    "SpaceToDepth": OpRule(_FLOAT, attributes={"mode": ("DCR",)}),
    "Split": OpRule(_ANY, constant_inputs=(1,)),
    "Tile": OpRule(_ANY, constant_inputs=(1,)),
    "TopK": OpRule(_NUMBERS, constant_inputs=(1,), attributes={"sorted": (1,)}),
}
_SECOND_OUTPUTS = frozenset({"BatchNormalization", "Dropout", "LayerNormalization", "MaxPool", "RMSNormalization"})
"""Operators of which only the first output is right or there at all."""


_NO_CONTROL_FLOW = {
    "If": "its condition is known only at run time, and compiled code has no branches around operators: give the fleet "
    "file the sizes that decide it, or export the branch that the device needs",
    "Loop": "the number of its iterations is known only at run time, or too large to unroll, and compiled code has no "
    "loops around operators: export it with a constant trip count",
    "Scan": "the length of its axis is not fixed, or too large to unroll, and compiled code has no loops around "
    "operators: give the fleet file that size",
}


_FLOAT32 = PrecisionRule(
    "fp32",
    "the code generator computes in float32",
    converts_graph=False,
    tolerance="fp32",
    width_multiple=4,
)
_WIDE, _NARROW = BlockFormat(8, 64, symmetric=True), BlockFormat(4, 32)
BLOCKS_RULE = PrecisionRule(
    "int4-weights-int8",
    "weights of 4 and 8 bits in blocks, as limits on memory and accuracy allow; activations rounded to 8 bits while "
    "the model runs, sums in integers",
    converts_graph=False,
    tolerance="quantized",
    gain=3.0,
    scheme=QuantScheme(
        "tvm-weights-int8", {}, weights=WeightChoices((_NARROW, _WIDE), (_WIDE, _NARROW)), rounds_activations=True
    ),
)
"""Weights of language models, as native/blocks.c reads them."""
_HALF = PrecisionRule(
    "fp16",
    "the cores compute in float16 (asimdhp), twice as many elements at a time",
    converts_graph=True,
    tolerance="fp16",
    gain=1.9,
    width_multiple=8,
)


def _with_half(rule: OpRule) -> OpRule:
    return replace(rule, dtypes=rule.dtypes | {"FLOAT16"}) if "FLOAT" in rule.dtypes else rule


_BFLOAT16 = {
    Bfloat16.AVX512: (
        0.6,
        "smaller, not faster: vdpbf16ps takes Intel's cores four times as long as a product of floats",
    ),
    Bfloat16.AMX: (3.0, "tdpbf16ps multiplies 8192 pairs of bfloat16 an instruction (AMX)"),
}


def _bfloat16_rule(instructions: Bfloat16) -> PrecisionRule:
    """Inputs of convolutions and products are rounded when they are multiplied: the model stays as it is."""
    gain, reason = _BFLOAT16[instructions]
    return PrecisionRule("bf16", reason, converts_graph=False, tolerance="bf16", gain=gain, width_multiple=32)


def capability_of(dot: Dot, *, half: bool = False, bfloat16: Bfloat16 = Bfloat16.NONE) -> Capability:
    """The capability of a profile: fixed sizes, float32 or int8 arithmetic, integers and booleans beside it.

    Args:
        dot: How its cores multiply int8.
        half: Whether they compute in float16.
        bfloat16: How they multiply bfloat16.
    """
    ops = {
        **dict.fromkeys(_FLOAT_OPS.split(), OpRule(_FLOAT | {"INT64"})),
        **dict.fromkeys(_NUMBER_OPS.split(), OpRule(_NUMBERS)),
        **dict.fromkeys(_ANY_OPS.split(), OpRule(_ANY)),
        **dict.fromkeys(_MOVING_OPS.split(), OpRule(_QUANTIZED)),
        **dict.fromkeys(_FLOAT_REDUCTIONS.split(), OpRule(_FLOAT | {"INT64"}, constant_inputs=(1,))),
        **dict.fromkeys(_REDUCTIONS.split(), OpRule(_NUMBERS, constant_inputs=(1,))),
        **dict.fromkeys(_RESHAPING.split(), OpRule(_ANY, constant_inputs=(1,))),
        **_RULES,
    }
    halves = () if not half else (_HALF,)
    return Capability(
        ops={name: _with_half(rule) for name, rule in ops.items()} if half else ops,
        precisions=(
            _FLOAT32,
            *halves,
            *((_bfloat16_rule(bfloat16),) if bfloat16 else ()),
            int8_rule(dot),
            *((BLOCKS_RULE,) if dot in ARM_DOTS else ()),
            *((WEIGHTS_RULE,) if dot in ARM_DOTS else ()),
        ),
        precision_refusals={
            **({} if half else {"fp16": "the cores have no float16 arithmetic (asimdhp and +fullfp16)"}),
            **({} if bfloat16 else {"bf16": "the core has neither AVX512-BF16 nor AMX"}),
            **({} if dot in ARM_DOTS else dict.fromkeys(("int8-weights", BLOCKS_RULE.name), "its kernels are for ARM")),
            "int4-weights": f"its kernels multiply rounded activations: take {BLOCKS_RULE.name}",
            "fp16-weights": "weights are stored as they are computed with",
        },
        op_refusals=_NO_CONTROL_FLOW,
        dynamic_dims=True,
        ranges_max=1,
        fixed_sizes="several are built and share their weights; a batch that is none of them is divided into such",
        keeps_cache=True,
        narrow_cache=dot in ARM_DOTS,
        opset_max=OPSET_MAX,
    )


def find_details(model: ir.Model) -> Iterator[Refusal]:
    """Refusals that depend on more than an operator's types and attributes."""
    for node in model.graph:
        name = node.name or "(unnamed)"
        if op_key(node) in _SECOND_OUTPUTS and any(value.name for value in node.outputs[1:]):
            yield Refusal(name, node.op_type, "only its first output is computed")
        if node.op_type == "Resize" and (reason := _resize_reason(node)):
            yield Refusal(name, "Resize", reason)
        if node.op_type in ("GRU", "LSTM", "RNN") and (reason := recurrent_reason(node)):
            yield Refusal(name, node.op_type, reason)
        if node.op_type == "RMSNormalization" and _rank(node.inputs[1]) != 1:
            yield Refusal(name, node.op_type, "it normalizes more than the last axis")
        elif node.op_type in ("LayerNormalization", "RMSNormalization") and not _scale_covers(node):
            yield Refusal(name, node.op_type, "its scale must have the shape of the normalized axes")


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _scale_covers(node: ir.Node) -> bool:
    data, scale = (node.inputs[index] for index in (0, 1))
    if data is None or scale is None or data.shape is None or scale.shape is None:
        return False
    axis = node.attributes.get_int("axis", -1)
    return tuple(scale.shape) == tuple(data.shape)[axis:]


def _resize_reason(node: ir.Node) -> str:
    data, result = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None or result.shape is None:
        return "the shapes of its input and output are not known"
    if not (data.shape.is_static() and result.shape.is_static()):
        return "its input or output has no fixed shape"
    import numpy as np

    before, after = (np.array(shape.numpy(), dtype=np.float64) for shape in (data.shape, result.shape))
    scales = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scales is not None and scales.size and not np.allclose(scales.numpy() * before, after, rtol=0, atol=1e-4):
        return "the output size is rounded, and TVM computes the scale from the sizes"
    powers = np.log2(after / before)
    corners = node.attributes.get_string("coordinate_transformation_mode", "") == "align_corners"
    exact = not corners and bool((powers == np.round(powers)).all())
    if node.attributes.get_string("mode", "nearest") == "nearest" and not exact:
        return "the nearest element is a matter of rounding where a size does not change by a power of two"
    return ""
