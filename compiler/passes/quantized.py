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


def rounded_value(node: ir.Node, block: int = 0) -> ir.Value | None:
    """What a node gives back rounded, in blocks by scales worked out while the model runs; None where it rounds none.

    Args:
        node: Any.
        block: The size of the blocks; 0: any.
    """
    integers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    rounding = integers.producer() if integers is not None else None
    if rounding is None or rounding.op_type != "QuantizeLinear" or rounding.inputs[1] is not node.inputs[1]:
        return None
    size = node.attributes.get_int("block_size", 0)
    if not size or block not in (0, size) or size != rounding.attributes.get_int("block_size", 0):
        return None
    is_measured = node.inputs[1] is not None and node.inputs[1].producer() is not None
    return rounding.inputs[0] if is_measured else None
