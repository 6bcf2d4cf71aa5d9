"""Folds BatchNormalization at inference into the layer before it, or into the Conv after it.

With s = gamma / √(var + epsilon) and t = beta − mean·s, BatchNormalization is x·s + t per channel; then:

1. Conv, ConvTranspose, Gemm or MatMul → BatchNormalization: case 1 of `absorb.py`, where the layer's output channels
   are axis 1, which BatchNormalization scales. MatMul puts them last, so its output must have rank 2.
2. BatchNormalization → Conv without padding: case 2 of `absorb.py`.

Normalization by the statistics of the batch (training_mode, or further outputs before opset 14) is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from compiler.passes.absorb import (
    LAYERS,
    Affine,
    constant_array,
    fold_after,
    fold_before,
    input_channels,
    output_channels,
    output_layout,
    rebuild,
)
from compiler.passes.matching import Refused, producer, rule_of
from compiler.passes.rules import RulePass

DEFAULT_EPSILON = 1e-5


class AbsorbBatchNormAfter(RewriteRuleClassBase):
    """Case 1: layer → BatchNormalization."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"AbsorbBatchNormAfter{layer}")
        self._layer = layer

    def pattern(self, op: Any, x: Any) -> Any:
        layer = getattr(op, self._layer)(x, _allow_other_inputs=True, _outputs=["layer_out"])
        return op.BatchNormalization(layer, _allow_other_inputs=True, _outputs=["bn_out"])

    def check(self, context: Any, x: ir.Value, layer_out: ir.Value, bn_out: ir.Value) -> MatchResult:
        layer = producer(layer_out)
        _require_channels_on_axis_1(layer)
        _normalization(producer(bn_out), output_channels(layer))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, layer_out: ir.Value, bn_out: ir.Value) -> ir.Value:
        layer = producer(layer_out)
        normalization = _normalization(producer(bn_out), output_channels(layer))
        return rebuild(op, layer, x, fold_after(layer, normalization))


class AbsorbBatchNormBefore(RewriteRuleClassBase):
    """Case 2: BatchNormalization → Conv."""

    def pattern(self, op: Any, x: Any) -> Any:
        normalized = op.BatchNormalization(x, _allow_other_inputs=True, _outputs=["bn_out"])
        return op.Conv(normalized, _allow_other_inputs=True, _outputs=["conv_out"])

    def check(self, context: Any, x: ir.Value, bn_out: ir.Value, conv_out: ir.Value) -> MatchResult:
        _normalization(producer(bn_out), input_channels(producer(conv_out)))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, bn_out: ir.Value, conv_out: ir.Value) -> ir.Value:
        conv = producer(conv_out)
        normalization = _normalization(producer(bn_out), input_channels(conv))
        return rebuild(op, conv, x, fold_before(conv, normalization))


def _require_channels_on_axis_1(layer: ir.Node) -> None:
    rank, axis = output_layout(layer)
    if rank is None or rank + axis != 1:
        raise Refused(f"the channels of {layer.op_type} are not known to lie on axis 1, as BatchNormalization's do")


def _normalization(bn: ir.Node, channels: int) -> Affine:
    """BatchNormalization as x·s + t."""
    if bn.attributes.get_int("training_mode", 0) or len(bn.outputs) > 1:
        raise Refused("BatchNormalization is in training mode: it normalizes by the statistics of the batch")
    gamma, beta, mean, var = (constant_array(value, "parameter").astype(np.float64) for value in bn.inputs[1:5])
    if any(array.shape != (channels,) for array in (gamma, beta, mean, var)):
        raise Refused(f"a parameter of BatchNormalization is not of shape [{channels}]")
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(var + bn.attributes.get_float("epsilon", DEFAULT_EPSILON))
        return Affine(scale, beta - mean * scale)


FUSE_CONV_BN = RulePass(
    "fuse-conv-bn", [*(rule_of(AbsorbBatchNormAfter(layer)) for layer in LAYERS), rule_of(AbsorbBatchNormBefore())]
)
