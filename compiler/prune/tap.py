"""Values inside a model, watched while it runs on calibration data: one truncated session, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.graph import skeleton
from compiler.numerics import Array, Arrays
from compiler.passes.remove_dead_nodes import remove_dead_nodes


def watch(model: ir.Model, names: Sequence[str], batches: Iterable[Arrays]) -> Iterator[tuple[Array, ...]]:
    """What the named values are on every batch, in their order; nothing behind them is computed.

    Args:
        model: Any valid model; left as it is.
        names: Values of its main graph.
        batches: Graph inputs by name.
    """
    session, weights = _open(model, names)
    for batch in batches:
        yield tuple(session.run(list(names), {**{name: batch[name] for name in _wanted(session, batch)}, **weights}))


def _wanted(session: Any, batch: Arrays) -> list[str]:
    return [value.name for value in session.get_inputs() if value.name in batch]


def _open(model: ir.Model, names: Sequence[str]) -> tuple[Any, dict[str, Array]]:
    import onnxruntime as ort

    cut = model.clone()
    values = {str(value.name): value for node in cut.graph for value in node.outputs}
    values |= {str(value.name): value for value in cut.graph.inputs}
    cut.graph.outputs[:] = [_typed(values[name]) for name in names]
    remove_dead_nodes(cut)
    weights = {
        name: np.ascontiguousarray(value.const_value.numpy())
        for name, value in cut.graph.initializers.items()
        if value.const_value is not None
    }
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    bare = skeleton(cut)
    session = ort.InferenceSession(bare.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    return session, {name: array for name, array in weights.items() if name in taken}


def _typed(value: ir.Value) -> ir.Value:
    if value.dtype is None:
        value.dtype = ir.DataType.FLOAT
    return value
