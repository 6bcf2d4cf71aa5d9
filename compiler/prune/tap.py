"""Values inside a model, watched while it runs on calibration data; nothing behind them is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import onnx_ir as ir

from compiler.evaluate.background import run_ahead
from compiler.numerics import Array, Arrays
from compiler.passes.remove_dead_nodes import remove_dead_nodes
from compiler.unoptimized import Unoptimized


def watch(model: ir.Model, names: Sequence[str], batches: Iterable[Arrays]) -> Iterator[tuple[Array, ...]]:
    """What the named values are on every batch, in their order; a few batches ahead of who reads them.

    Args:
        model: Any valid model; left as it is.
        names: Values of its main graph, each once.
        batches: Graph inputs by name.

    Raises:
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    session = Unoptimized(_cut_behind(model, names))
    workers = os.cpu_count() or 1
    for found in run_ahead((partial(session.run, batch) for batch in batches), workers=workers, ahead=workers):
        yield tuple(found[name] for name in names)


def _cut_behind(model: ir.Model, names: Sequence[str]) -> ir.Model:
    cut = model.clone()
    values = {str(value.name): value for value in cut.graph.inputs}
    values |= {str(value.name): value for node in cut.graph for value in node.outputs}
    cut.graph.outputs[:] = [_typed(values[name]) for name in names]
    remove_dead_nodes(cut)
    return cut


def _typed(value: ir.Value) -> ir.Value:
    if value.dtype is None:
        value.dtype = ir.DataType.FLOAT
    return value
