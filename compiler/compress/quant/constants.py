"""Replaces constants of one node; other nodes that read the same constant keep it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.model.graph import add_constant
from compiler.passes.values import Names, replace_input

_FITTED = "_fitted"
"""Suffix of the names of constants that the quantizer changed."""


def give_constant(model: ir.Model, node: ir.Node, index: int, array: NDArray[np.float32], names: Names) -> None:
    """Replaces a constant input of a node; the old initializer is removed if it has no other reader.

    Args:
        model: The node's; it is changed.
        node: Of the main graph.
        index: Of the input, which may be missing so far.
        array: The new constant.
        names: Of the model.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    stem = f"{node.name}_{index}" if old is None else str(old.name).partition(_FITTED)[0]
    value = add_constant(model.graph, names.fresh(stem + _FITTED), array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    replace_input(node, index, value)
    if old is not None and old.producer() is None and not old.uses() and not old.is_graph_output():
        model.graph.initializers.pop(str(old.name), None)
