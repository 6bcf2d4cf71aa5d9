"""Intermediate values of a model on calibration data; nodes behind them are not computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import onnx_ir as ir

from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.remove_dead_nodes import remove_dead_nodes


def watch(model: ir.Model, names: Sequence[str], batches: Iterable[Arrays]) -> Iterator[tuple[Array, ...]]:
    """The named values on each batch, computed a few batches ahead of the caller.

    Args:
        model: Any valid model; left as it is.
        names: Values of its main graph, each once.
        batches: Graph inputs by name.

    Raises:
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    cut = cut_between(model, (), names)
    session, reads = Unoptimized(cut), [str(value.name) for value in cut.graph.inputs]
    workers = available_cpus()
    steps = (partial(session.run, {name: batch[name] for name in reads}) for batch in batches)
    for outputs in run_ahead(steps, workers=workers, ahead=workers):
        yield tuple(outputs[name] for name in names)


def cut_between(model: ir.Model, boundary: Sequence[str], names: Sequence[str]) -> ir.Model:
    """A copy of the part of a model between some values and others; its inputs are those it reads.

    Args:
        model: The whole model; left as it is.
        boundary: Values that become inputs, beside the inputs of the model.
        names: Values that become the outputs, none of them given.
    """
    cut = model.clone()
    values = {str(value.name): value for node in cut.graph for value in node.outputs}
    inputs = {str(value.name): value for value in cut.graph.inputs}
    for name in boundary:
        if (old := values.get(name)) is not None:
            new = ir.Value(name=name, shape=old.shape, type=_typed(old).type)
            old.name = None
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            cut.graph.inputs.append(new)
    cut.graph.outputs[:] = [_typed(inputs.get(name) or values[name]) for name in names]
    remove_dead_nodes(cut)
    cut.graph.inputs[:] = [value for value in cut.graph.inputs if value.uses() or value.is_graph_output()]
    return cut


def _typed(value: ir.Value) -> ir.Value:
    if value.dtype is None:
        value.dtype = ir.DataType.FLOAT
    return value
