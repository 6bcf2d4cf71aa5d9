"""What the builder fails at though the parser takes it, refused before either is asked: with node, operator, reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compiler.target import Refusal, op_key

if TYPE_CHECKING:
    import onnx_ir as ir


def refuse_unbuildable(model: ir.Model) -> tuple[Refusal, ...]:
    """Every output and node of a border model that has no form in an engine, in graph order."""
    return (*_passed_through(model), *_strided_and_dilated(model))


def _passed_through(model: ir.Model) -> Iterator[Refusal]:
    """An engine's inputs and outputs share one set of names."""
    inputs = set(model.graph.inputs)
    for value in model.graph.outputs:
        if value in inputs:
            reason = "it is an input of the model, too, and an engine knows a tensor by one name: leave it out"
            yield Refusal(str(value.name), "Output", reason)


def _strided_and_dilated(model: ir.Model) -> Iterator[Refusal]:
    for node in model.graph.all_nodes():
        if node.op_type == "ConvTranspose" and _exceeds_one(node, "strides") and _exceeds_one(node, "dilations"):
            reason = "TensorRT computes no transposed convolution that has strides and dilations above 1"
            yield Refusal(node.name or "(unnamed)", op_key(node), reason)


def _exceeds_one(node: ir.Node, name: str) -> bool:
    return name in node.attributes and any(size > 1 for size in node.attributes[name].as_ints())
