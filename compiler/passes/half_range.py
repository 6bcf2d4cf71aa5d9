"""Values that may lie beyond the range of half precision: the mask of attention, whose lowest number is −3.4e38.

In half such a number becomes −∞, and a row that is masked as a whole becomes NaN in Softmax. So what reads it stays
float32. A value may lie beyond the range if
1. it is a constant that does,
2. an operator that passes magnitudes on (Add, Mul, Where, Unsqueeze, …) computes it of such a value,
3. it is an input of the model that such operators alone lead to a Softmax: a mask that the caller makes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.values import constant_tensor

_ELEMENTWISE = frozenset({"Abs", "Add", "Cast", "Div", "Mul", "Neg", "Sub", "Sum", "Where"})
_MOVES = frozenset({"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"})
_PASSES_ON = _ELEMENTWISE | _MOVES | {"Tile", "Transpose", "Unsqueeze"}
"""Operators whose result may be as large as what they read; Clip, Softmax and Sigmoid bound it."""

_NORMALIZES = frozenset({"Softmax", "LogSoftmax"})


def beyond_range(graph: ir.Graph, limit: float) -> frozenset[ir.Value]:
    """Values of a graph that may hold finite numbers larger than `limit`.

    Args:
        graph: In topological order.
        limit: Largest finite number of the half type.
    """
    large = {value for value in graph.inputs if _is_float(value) and _leads_to_softmax(value)}
    for node in graph:
        large.update(value for value in node.inputs if value is not None and _exceeds(value, limit))
        if node.domain == "" and node.op_type in _PASSES_ON and any(value in large for value in node.inputs):
            large.update(value for value in node.outputs if _is_float(value))
    return frozenset(large)


def _exceeds(value: ir.Value, limit: float) -> bool:
    tensor = constant_tensor(value)
    if tensor is None or not _is_float(value) or tensor.size == 0:
        return False
    array = tensor.numpy()
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0)) > limit


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _leads_to_softmax(value: ir.Value) -> bool:
    waiting, seen = [value], {value}
    while waiting:
        for reader, _ in waiting.pop().uses():
            if reader.op_type in _NORMALIZES:
                return True
            if reader.domain == "" and reader.op_type in _PASSES_ON:
                new = [output for output in reader.outputs if output not in seen]
                waiting += new
                seen.update(new)
    return False
