"""What a model takes and gives, as plain values."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.spec import TensorSpec


def describe_inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Name, numpy dtype name and shape of every input; raises UnsupportedModel for one that is no ranked tensor."""
    return _describe(model.graph.inputs)


def describe_outputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The same of every output."""
    return _describe(model.graph.outputs)


def _describe(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise UnsupportedModel(f"'{value.name}' is no tensor of known rank: {value.type}, shape {value.shape}")
    dims = tuple(dim if isinstance(dim, int) else dim.value or "?" for dim in value.shape)
    return TensorSpec(str(value.name), value.type.dtype.numpy().name, dims)
