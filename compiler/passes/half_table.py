"""Which operators stay float32 in half precision, and why; operators whose schema forbids it are not listed.

QuantizeLinear and DequantizeLinear follow their scale: its schema allows half from opset 19 on.
"""

from __future__ import annotations

from collections.abc import Mapping

_SUMS = "sums many terms; 11 bits of mantissa lose the small ones, and fp16 overflows at 65504"
_SQUARES = "squares its input on the way; fp16 overflows where it exceeds 256"
_EXPONENTIAL = "an exponential or logarithm: fp16 overflows above e¹¹ and keeps three digits"
_BY_ATTRIBUTE = "its output type is an attribute of the model"
_QUANTIZED = "scales and zero points of the quantization are float32 by definition"
_COUNTS = "counts in steps; 11 bits hold integers up to 2048 only"
_PLACES = "its inputs are places in an image, which 11 bits round to other pixels"
_RECURRENT = "feeds its rounding back into itself at every step"
_TREES = "compares with thresholds that rounding would move"

STAYS_FLOAT32: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceLogSum", "ReduceLogSumExp"),
            *("GlobalAveragePool", "CumSum", "Sum", "Mean"),
        ),
        _SUMS,
    ),
    **dict.fromkeys(
        (
            *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
            *("BatchNormalization", "MeanVarianceNormalization", "LpNormalization", "LRN"),
            *("ReduceL2", "ReduceSumSquare", "LpPool", "GlobalLpPool", "Pow"),
        ),
        _SQUARES,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Exp", "Log", "Softplus", "Sinh", "Cosh"), _EXPONENTIAL),
    **dict.fromkeys(
        (
            *("Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike"),
            *("RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "SequenceEmpty"),
            *("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"),
        ),
        _BY_ATTRIBUTE,
    ),
    **dict.fromkeys(
        (*("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),),
        _QUANTIZED,
    ),
    "Range": _COUNTS,
    **dict.fromkeys(("NonMaxSuppression", "RoiAlign", "MaxRoiPool", "GridSample", "AffineGrid"), _PLACES),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"), _TREES),
    **dict.fromkeys(("DFT", "STFT", "Det"), _SUMS),
}
"""Operator → reason."""
