"""Sensitivity of layers: the error of the model's outputs when one layer alone is quantized.

What stands before that layer computes what it does in the float model. So the layers are taken in the order of the
graph, the values that pass from the nodes before one to those behind it (its frontier) are kept, and only what is
behind is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.apply import apply, at_opset
from compiler.compress.quant.plan import QuantPlan
from compiler.compress.quant.prepare import prepare
from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
from compiler.model.frontend.extract import extract_prefix, extract_suffix, needed_nodes, read_by
from compiler.model.numerics import Array, Arrays, compare_all
from compiler.model.reference import Unoptimized


@dataclass(frozen=True)
class LayerError:
    """Sensitivity of one layer.

    Args:
        node: Its name.
        op: Its operator.
        sqnr_db: Signal-to-quantization-noise ratio of the worst of the model's outputs when only this layer is
            quantized, in dB; inf where nothing changes.
    """

    node: str
    op: str
    sqnr_db: float


def measure_sensitivity(model: ir.Model, plan: QuantPlan, batches: Iterable[Arrays]) -> tuple[LayerError, ...]:
    """The sensitivity of every quantized layer that is not only passing values on, the worst first.

    Args:
        model: The float model that the plan was chosen for.
        plan: The plan; layers that it leaves float are not measured.
        batches: A few inputs; all of them, and the model's outputs for them, are held in memory.

    Raises:
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    inputs, model = list(batches), at_opset(prepare(model), plan.opset)  # once, and not for each layer
    whole = apply(model, replace(plan, tensors={}, weights={}, reads={}, int_biases=(), compute="fp32"))
    expected = _outputs(whole, inputs)
    steps = (
        partial(_error, model, part, frontier, expected)
        for part, frontier in _with_frontiers(whole, list(_parts(plan)), inputs)
    )
    # each step holds its frontier
    errors = run_ahead(steps, workers=available_cpus(), ahead=available_cpus())
    return tuple(sorted(errors, key=lambda error: (error.sqnr_db, error.node)))


_Part: TypeAlias = tuple[str, str, QuantPlan]
"""Node, operator, and the plan with that node alone quantized."""


@dataclass(frozen=True)
class _Frontier:
    """What the nodes from one place on read of those before it.

    Args:
        names: The values; none where nothing was cut off.
        values: Them by name, and inputs of the model, for each batch.
    """

    names: tuple[str, ...]
    values: list[Arrays]


def _with_frontiers(whole: ir.Model, parts: list[_Part], inputs: list[Arrays]) -> Iterator[tuple[_Part, _Frontier]]:
    """The parts in the order of their nodes, each with the frontier before its node."""
    places = {str(node.name): place for place, node in enumerate(whole.graph)}
    crossing, frontier = _crossing(whole.graph), _Frontier((), inputs)
    for part in sorted(parts, key=lambda part: places.get(part[0], 0)):
        values = crossing(places.get(part[0], 0))
        if all(isinstance(value.type, ir.TensorType) for value in values):  # else the last one is as right, and longer
            frontier = _advance(whole, frontier, tuple(str(value.name) for value in values))
        yield part, frontier


def _crossing(graph: ir.Graph) -> Callable[[int], list[ir.Value]]:
    """Of a place in the graph, the values that come from before it and are read from it on."""
    needed = needed_nodes(graph.outputs)
    last = {value: place for place, node in enumerate(graph) if node in needed for value in read_by(node)}
    last |= dict.fromkeys(graph.outputs, len(graph))
    made = dict.fromkeys((value for value in graph.inputs if value.name not in graph.initializers), -1)
    made |= {value: place for place, node in enumerate(graph) for value in node.outputs}
    spans = [(value, place, last[value]) for value, place in made.items() if value in last]
    return lambda place: [value for value, start, end in spans if start < place <= end]


def _advance(whole: ir.Model, frontier: _Frontier, names: tuple[str, ...]) -> _Frontier:
    """The frontier of a later place, computed from the one before."""
    if not names or set(names) <= set(frontier.values[0] if frontier.values else ()):
        return _Frontier(names, [{name: batch[name] for name in names} for batch in frontier.values])
    run = _runner(extract_prefix(_behind(whole, frontier), names))
    return _Frontier(names, [run(batch) for batch in frontier.values])


def _behind(model: ir.Model, frontier: _Frontier) -> ir.Model:
    return extract_suffix(model, frontier.names) if frontier.names else model


def _parts(plan: QuantPlan) -> Iterator[_Part]:
    for layer in plan.layers:
        reads = {layer.node: plan.reads[layer.node]} if layer.node in plan.reads else {}
        weights = {key: quant for key, quant in plan.weights.items() if key.rsplit("/", 1)[0] == layer.node}
        if layer.precision != "float" and not layer.is_passing and (reads or weights):
            biases = tuple(node for node in plan.int_biases if node == layer.node)
            part = replace(plan, reads=reads, weights=weights, int_biases=biases, compute="fp32")
            yield layer.node, layer.op, part


def _error(model: ir.Model, part: _Part, frontier: _Frontier, expected: Mapping[str, Array]) -> LayerError:
    node, op, plan = part
    stats_by_output = compare_all(expected, _outputs(_behind(apply(model, plan), frontier), frontier.values))
    return LayerError(node, op, min((stats.sqnr_db for stats in stats_by_output.values()), default=float("inf")))


def _outputs(model: ir.Model, inputs: list[Arrays]) -> dict[str, Array]:
    run = _runner(model)
    runs = [run(batch) for batch in inputs]
    return {name: np.concatenate([run[name].reshape(-1) for run in runs]) for name in runs[0]} if runs else {}


def _runner(model: ir.Model) -> Callable[[Arrays], dict[str, Array]]:
    """Runs the model on those of given values that it still reads."""
    session, read = Unoptimized(model), {str(value.name) for value in model.graph.inputs}
    return lambda given: session.run({name: array for name, array in given.items() if name in read})
