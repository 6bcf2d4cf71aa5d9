"""What the builder fails at though the parser takes it, refused before either is asked: with node, operator, reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compiler.target import Refusal, op_key

if TYPE_CHECKING:
    import onnx_ir as ir


_TOP_K_MAX = 3840
"""K of ITopKLayer; the builder ends with an error above it."""


def refuse_unbuildable(model: ir.Model) -> tuple[Refusal, ...]:
    """Every output and node of a border model that has no form in an engine, in graph order."""
    return (*_passed_through(model), *_strided_and_dilated(model), *_too_many(model))


def must_be_written_out(node: ir.Node) -> bool:
    """Whether the parser fails at a node, and not at the operators that it is made of.

    Attention with a mask and a causal one, or with keys and values of other sizes; recurrent layers in float16 that are
    given lengths, where the parser selects between float16 and float32.
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    data, lengths = node.inputs[0] if node.inputs else None, node.inputs[4] if len(node.inputs) > 4 else None
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return data is not None and lengths is not None and str(data.dtype) == "FLOAT16"
    if node.op_type != "Attention":
        return False
    _, key, value, mask = (*node.inputs, None)[:4]
    is_causal = node.attributes.get_int("is_causal", False)
    return (mask is not None and bool(is_causal)) or key is None or value is None or key.shape != value.shape


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


def _too_many(model: ir.Model) -> Iterator[Refusal]:
    for node in model.graph.all_nodes():
        count = node.outputs[0].shape
        axis = node.attributes.get_int("axis", -1)
        if node.op_type == "TopK" and count is not None and isinstance(size := count[axis], int) and size > _TOP_K_MAX:
            reason = f"it keeps {size} elements; TensorRT keeps at most {_TOP_K_MAX}"
            yield Refusal(node.name or "(unnamed)", op_key(node), reason)


def _exceeds_one(node: ir.Node, name: str) -> bool:
    return name in node.attributes and any(size > 1 for size in node.attributes[name].as_ints())
