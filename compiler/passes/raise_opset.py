"""raise-opset: a model of opset 7 to 10 becomes one of opset 11, the oldest whose operators the passes know.

ONNX's version converter does it, on the model without its weights. Its result is compared with the model on a probe;
where it computes something else, or where it leaves an operator in a subgraph as it was, the model is refused.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.graph import FunctionPass, PassResult, check_model
from compiler.model.numerics import TOLERANCES
from compiler.model.opset import raise_opset as raised
from compiler.passes.probe import make_probe

OPSET = 11
"""Oldest version that the passes are written for: from here on Clip, Pad and Slice take their bounds as inputs."""

_REASON = "this release"


def raise_opset(model: ir.Model) -> PassResult:
    """Raises the main graph and the subgraphs.

    Raises:
        UnsupportedModel: The model cannot be raised, or would compute something else.
    """
    current = model.graph.opset_imports.get("", OPSET)
    if current >= OPSET:
        return PassResult(False)
    probe = make_probe(model)
    newer = raised(model, OPSET, reason=_REASON)
    _check(newer, current)
    notes = [f"opset {current} became {OPSET}"]
    if probe.expected is None:
        notes.append(f"the result could not be compared: {probe.why}")
    elif not TOLERANCES["fp32"].accepts(probe.worst(newer)):
        raise UnsupportedModel(
            f"raised from opset {current} to {OPSET}, the model computes something else",
            remedy=f"Export it again with opset {OPSET} or newer.",
        )
    model.graph = newer.graph
    return PassResult(True, tuple(notes))


def _check(newer: ir.Model, current: int) -> None:
    """The converter does not look into every subgraph."""
    try:
        check_model(newer)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(
            f"the model's opset {current} cannot be raised to {OPSET}, which {_REASON} needs: {str(error)[:300]}",
            remedy=f"Export the model with opset {OPSET} or newer.",
        ) from error


RAISE_OPSET = FunctionPass("raise-opset", raise_opset)
