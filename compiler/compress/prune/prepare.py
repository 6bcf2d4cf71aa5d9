"""Prepares a model for channel tracing: constants become initializers, computed Reshape targets become constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from compiler.compress.prune.walk import sizes
from compiler.model.graph import add_constant
from compiler.passes.remove_dead_nodes import remove_dead_nodes
from compiler.passes.values import Names, constant_of


def prepare(model: ir.Model) -> ir.Model:
    """An equal model in the form that the rules of `groups` expect; the original is left as it is."""
    copy = model.clone()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    names = Names(copy)
    for node in copy.graph:
        if node.op_type == "Reshape" and constant_of(node.inputs[1]) is None:
            _settle(copy, node, names)
    remove_dead_nodes(copy)
    return copy


def _settle(model: ir.Model, node: ir.Node, names: Names) -> None:
    """Replaces a Reshape target computed at run time by a constant; at most one size may be symbolic."""
    shape = sizes(node.outputs[0])
    if shape is None or sum(isinstance(size, str) for size in shape) > 1:
        return
    target = np.array([-1 if isinstance(size, str) else size for size in shape], dtype=np.int64)
    name = names.fresh(f"{node.outputs[0].name}_shape")
    node.replace_input_with(1, add_constant(model.graph, name, target))
