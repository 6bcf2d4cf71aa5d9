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


def is_quantized(model: ir.Model) -> bool:
    """Whether some node, in subgraphs too, works on quantized values."""
    return any(node.op_type in QUANTIZED_OPS for node in model.graph.all_nodes())
