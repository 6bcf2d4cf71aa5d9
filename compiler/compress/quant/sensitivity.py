"""Sensitivity of layers: the error of the model's outputs when one layer alone is quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.apply import apply
from compiler.compress.quant.plan import QuantPlan
from compiler.compress.quant.prepare import prepare
from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
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
    inputs, model = list(batches), prepare(model)
    unquantized = replace(plan, tensors={}, weights={}, reads={}, int_biases=(), compute="fp32")
    expected = _outputs(apply(model, unquantized), inputs)
    steps = (partial(_error, model, part, inputs, expected) for part in _parts(plan))
    errors = run_ahead(steps, workers=available_cpus(), ahead=2 * available_cpus())
    return tuple(sorted(errors, key=lambda error: (error.sqnr_db, error.node)))


def _parts(plan: QuantPlan) -> Iterator[tuple[str, str, QuantPlan]]:
    """Node, operator, and the plan with that node alone quantized."""
    for layer in plan.layers:
        reads = {layer.node: plan.reads[layer.node]} if layer.node in plan.reads else {}
        weights = {key: quant for key, quant in plan.weights.items() if key.rsplit("/", 1)[0] == layer.node}
        if layer.precision != "float" and not layer.is_passing and (reads or weights):
            biases = tuple(node for node in plan.int_biases if node == layer.node)
            part = replace(plan, reads=reads, weights=weights, int_biases=biases, compute="fp32")
            yield layer.node, layer.op, part


def _error(
    model: ir.Model, part: tuple[str, str, QuantPlan], inputs: list[Arrays], expected: Mapping[str, Array]
) -> LayerError:
    node, op, plan = part
    stats_by_output = compare_all(expected, _outputs(apply(model, plan), inputs))
    return LayerError(node, op, min((stats.sqnr_db for stats in stats_by_output.values()), default=float("inf")))


def _outputs(model: ir.Model, inputs: list[Arrays]) -> dict[str, Array]:
    session = Unoptimized(model)
    runs = [session.run(batch) for batch in inputs]
    return {name: np.concatenate([run[name].reshape(-1) for run in runs]) for name in runs[0]} if runs else {}
