"""What only a quantized model has."""

from __future__ import annotations

import onnx_ir as ir

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators that only change the form of numbers."""

QUANTIZED_OPS = QUANTIZERS | {
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "QLinearAdd",
    "QLinearConv",
    "QLinearMatMul",
}
"""Operators, of any domain, that only a quantized model has."""


QUANTIZED_AT_EACH_STEP = "DynamicQuantizeLSTM"
"""It quantizes its state at each step by a range that it measures then; written in floats it does not."""


def count_quantized_steps(model: ir.Model) -> int:
    """How many nodes quantize at each step of a sequence."""
    return sum(node.op_type == QUANTIZED_AT_EACH_STEP for node in model.graph.all_nodes())


def is_quantized(model: ir.Model) -> bool:
    """Whether some node, in subgraphs too, works on quantized values."""
    return any(node.op_type in QUANTIZED_OPS for node in model.graph.all_nodes())
