"""Models that are quantized already: they are passed on, never quantized twice."""

from __future__ import annotations

import onnx_ir as ir

QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}
    | {"MatMulInteger", "MatMulNBits", "QLinearAdd", "QGemm"}
)
"""Operators, of any domain, that only a quantized model has."""


def is_quantized(model: ir.Model) -> bool:
    """Whether some node, in subgraphs too, works on quantized values."""
    return any(node.op_type in QUANTIZED_OPS for node in model.graph.all_nodes())
