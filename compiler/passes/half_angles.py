"""Angles that are worked out of positions: half precision holds integers up to 2048 only, or 256 in bfloat16.

    positions (integers) → Cast → · frequencies → Sin, Cos      stay float32; what reads sines and cosines need not

The angle of position 1500 is off by half in float16, and its sine is another one.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.passes.values import constant_tensor

_WIDE = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64})
"""Integers that may be larger than half precision holds."""

_STEPS = frozenset(
    (
        *("Add", "Concat", "Div", "Expand", "Flatten", "Identity", "MatMul", "Mul", "Neg", "Reshape", "Slice", "Split"),
        *("Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators that angles are worked out by."""

_TURNS = frozenset({"Cos", "Sin", "Tan"})


def find_angles(graph: ir.Graph) -> frozenset[ir.Node]:
    """The nodes that take sines and cosines of numbers made of integers and constants, and those that make the numbers.

    Args:
        graph: In order.
    """
    counted: set[ir.Value] = set()
    for node in graph:
        if _is_of_integers(node) or (node.op_type in _STEPS and _is_of_counts(node, counted)):
            counted.update(node.outputs)
    front = [node for node in graph if node.op_type in _TURNS and node.inputs[0] in counted]
    found: set[ir.Node] = set()
    while front:
        node = front.pop()
        found.add(node)
        producers = [value.producer() for value in node.inputs if value is not None and value in counted]
        front += [producer for producer in producers if producer is not None and producer not in found]
    return frozenset(node for node in found if not _is_of_integers(node))


def _is_of_integers(node: ir.Node) -> bool:
    read = node.inputs[0] if node.op_type == "Cast" else None
    return read is not None and read.dtype in _WIDE and node.outputs[0].dtype == ir.DataType.FLOAT


def _is_of_counts(node: ir.Node, counted: set[ir.Value]) -> bool:
    """Whether every float that a node reads is made of integers or constant, and some of them of integers."""
    floats = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
    rest = [value for value in floats if value not in counted]
    return len(rest) < len(floats) and all(constant_tensor(value) is not None for value in rest)
