"""What the quantizer works on: the model in float32, with activations that operators before opset 14 spell out as one.

PaddlePaddle writes opset 11 and spells hard-swish as x·Clip(x + 3, 0, 6) / 6 or x·HardSigmoid(x). Left so, a chain of
four float operators stands between two quantized convolutions, which no kernel takes into the first.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.compress.quant.apply import at_opset
from compiler.compress.quant.widen import widen
from compiler.errors import UnsupportedModel
from compiler.passes.fuse_activations import FUSE_ACTIVATIONS, HARD_SWISH_OPSET
from compiler.passes.values import Names

_GATES = frozenset({"Clip", "HardSigmoid"})
"""Operators that a spelled-out hard-swish has one of."""


def prepare(model: ir.Model) -> ir.Model:
    """The model to observe, to fit and to place Q/DQ in; the same for every call with the same model.

    Args:
        model: Types and shapes inferred, every node named; left as it is.
    """
    return _with_hard_swish(widen(model))


def _with_hard_swish(model: ir.Model) -> ir.Model:
    opset = model.graph.opset_imports.get("", 1)
    operators = {node.op_type for node in model.graph}
    if opset >= HARD_SWISH_OPSET or "Mul" not in operators or not operators & _GATES:
        return model
    try:
        raised = at_opset(model, HARD_SWISH_OPSET)
    except UnsupportedModel:
        return model  # no worse than before: its activations stay spelled out
    FUSE_ACTIVATIONS(raised)
    if all(node.op_type != "HardSwish" for node in raised.graph):
        return model
    names = Names(raised)
    for node in raised.graph:  # those of the version converter have none
        node.name = node.name or names.fresh(f"{node.op_type}:{node.outputs[0].name}")
    return raised
