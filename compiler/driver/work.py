"""What each layer of a border model has to do: multiply-accumulates, weights to read, activations to move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from compiler.passes.macs import node_macs
from compiler.passes.quantized import QUANTIZERS
from compiler.target.capability import op_key

_NO_WORK = QUANTIZERS | {"Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape"}


@dataclass(frozen=True)
class LayerWork:
    """One operator of a border model, quantizers left out.

    Args:
        node: Its name.
        op: Its operator, as `Capability.ops` spells it.
        macs: Multiply-accumulates at the given batch.
        weights: Elements of its constant inputs.
        activations: Elements it reads and writes at run time.
        is_low: Whether what it reads at run time was quantized; in a model without quantizers, whether it has work to
            do at all: then the whole model is in one precision.
    """

    node: str
    op: str
    macs: float
    weights: int
    activations: float
    is_low: bool


def list_work(model: ir.Model, *, batch: int = 1) -> tuple[LayerWork, ...]:
    """The layers of the main graph in order; an unknown shape counts as no work.

    Args:
        model: A border model: every shape is in it, symbolic dimensions count as 1.
        batch: What a symbolic first dimension counts as.
    """
    quantized = any(node.op_type in QUANTIZERS for node in model.graph)
    return tuple(_work(node, quantized, batch) for node in model.graph if node.op_type not in QUANTIZERS | {"Constant"})


def list_border_casts(model: ir.Model, *, batch: int = 1, is_low: bool = True) -> tuple[LayerWork, ...]:
    """The Casts that a float32 model gets when its inside is converted: its inputs and outputs keep their types.

    Args:
        model: The float32 model.
        batch: What a symbolic first dimension counts as.
        is_low: Whether they count in the precision of the rest.
    """
    borders = [*(value for value in model.graph.inputs if value.const_value is None), *model.graph.outputs]
    floats = (value for value in borders if value.dtype == ir.DataType.FLOAT)
    return tuple(
        LayerWork(
            node=f"{value.name}.cast",
            op="Cast",
            macs=0.0,
            weights=0,
            activations=float(2 * _elements(value) * (batch if _is_free(value) else 1)),
            is_low=is_low,
        )
        for value in floats
    )


def _work(node: ir.Node, quantized: bool, batch: int) -> LayerWork:
    constants = list(_constants(node))
    moving = [value for value in node.inputs if value is not None and value not in constants]
    free = any(_is_free(value) for value in (*moving, *node.outputs))
    times = batch if free else 1
    moved = 0 if node.op_type in _NO_WORK else sum(_elements(value) for value in (*moving, *node.outputs))
    return LayerWork(
        node=str(node.name),
        op=op_key(node),
        macs=float((node_macs(node) or 0) * times),
        weights=sum(_elements(value) for value in constants),
        activations=float(moved * times),
        is_low=not quantized or any(_is_dequantized(value) for value in moving),
    )


def _constants(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs that hold weights: initializers, or initializers behind a dequantizer."""
    for value in node.inputs:
        if value is None:
            continue
        source = value.producer()
        behind = source.inputs[0] if source is not None and source.op_type == "DequantizeLinear" else None
        if value.const_value is not None or (behind is not None and behind.const_value is not None):
            yield value


def _is_dequantized(value: ir.Value) -> bool:
    source = value.producer()
    return source is not None and source.op_type == "DequantizeLinear"


def _is_free(value: ir.Value) -> bool:
    return bool(value.shape) and not isinstance(value.shape[0], int)  # type: ignore[index]  # an empty shape is false


def _elements(value: ir.Value) -> int:
    if value.const_value is not None:
        return int(value.const_value.size)
    return prod(size if isinstance(size, int) else 1 for size in value.shape) if value.shape is not None else 0
