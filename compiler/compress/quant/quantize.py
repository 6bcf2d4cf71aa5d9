"""Entry point: from a float model, calibration data and a scheme to a quantized model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from compiler.compress.quant.apply import apply
from compiler.compress.quant.batches import count_samples, sample_inputs
from compiler.compress.quant.calibration import CalibrationStats, check_calibration
from compiler.compress.quant.choose import choose, observed_values
from compiler.compress.quant.equalize import equalize
from compiler.compress.quant.fit import fit
from compiler.compress.quant.migrate import find_sites
from compiler.compress.quant.observe import Observations, observe
from compiler.compress.quant.options import Balance, QuantOptions
from compiler.compress.quant.plan import QuantPlan
from compiler.compress.quant.prepare import prepare
from compiler.compress.quant.smooth import smooth
from compiler.errors import DataError, UnsupportedModel
from compiler.model.numerics import Arrays
from compiler.passes.quantized import is_quantized
from compiler.target.scheme import QuantScheme

_FIT_BYTES = 64 << 20
"""Largest size of one value over all samples that layers are fitted on; about a dozen are in memory at a time."""


@dataclass(frozen=True)
class Calibrated:
    """Result of calibration: everything that ranges are chosen from.

    Args:
        observations: Histograms of every value that the scheme needs a range of.
        warnings: What is poor about the data, each with its effect.
    """

    observations: Observations
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and what it was made from.

    Args:
        model: With Q/DQ; inputs and outputs are those of the float model.
        plan: Formats and scales.
        observations: Histograms that ranges were chosen from; None for a scheme of weights only.
        warnings: What is poor about the calibration data, each with its effect.
    """

    model: ir.Model
    plan: QuantPlan
    observations: Observations | None
    warnings: tuple[str, ...] = ()


def quantize(
    model: ir.Model,
    batches: Iterable[Arrays] | None,
    scheme: QuantScheme,
    options: QuantOptions | None = None,
    *,
    keep_float: Mapping[str, str] | None = None,
    calibrated: Calibrated | None = None,
) -> Quantized:
    """Quantizes a model for a scheme.

    Args:
        model: In floating point, with types and shapes inferred and every node named; left as it is.
        batches: Calibration data, input name → array; read once. None where the scheme needs none.
        scheme: The target's.
        options: How; the defaults if None.
        keep_float: Node → why it stays in floating point.
        calibrated: Result of `calibrate` on the same data with the same scheme and options; then only the samples that
            layers are fitted on are read.

    Raises:
        UnsupportedModel: The model is quantized already, has nothing to quantize, or does not run.
        DataError: There are no calibration data, or the model computes NaN or infinity on them.
    """
    if is_quantized(model):
        raise UnsupportedModel("the model is quantized already, and is not quantized a second time")
    how = options or QuantOptions()
    if batches is None and scheme.needs_calibration:
        raise DataError(
            f"{scheme.name} needs calibration data: there are no meaningful activation ranges without them",
            remedy="Give a hundred or more typical inputs.",
        )
    # before ranges: balancing changes the values that are observed
    start = _begin(model, batches or (), how)
    if scheme.needs_calibration and calibrated is None:
        calibrated = _observe_all(start, scheme)
    seen = calibrated.observations if calibrated else None
    plan = choose(start.model, seen, scheme, how, keep_float=keep_float)
    fitted = fit(start.model, plan, _affordable(start.model, start.head), how) if start.head else start.model
    return Quantized(apply(fitted, plan), plan, seen, calibrated.warnings if calibrated else ())


def calibrate(
    model: ir.Model, batches: Iterable[Arrays], scheme: QuantScheme, options: QuantOptions | None = None
) -> Calibrated:
    """Observes a model on calibration data, for any number of calls of `quantize`.

    Args:
        model: As for `quantize`.
        batches: All of the data; read once.
        scheme: Which values need a range.
        options: Only those matter that change the model before it is observed (`balance`).

    Raises:
        UnsupportedModel: ONNX Runtime does not run the model.
        DataError: There are no data, or the model computes NaN or infinity on them.
    """
    return _observe_all(_begin(model, batches, options or QuantOptions()), scheme)


@dataclass(frozen=True)
class _Start:
    """The model to be observed, and the data: the samples held for fitting, and all of them as they stream by."""

    model: ir.Model
    head: list[Arrays]
    stream: Iterable[Arrays]
    stats: CalibrationStats


def _begin(model: ir.Model, batches: Iterable[Arrays], options: QuantOptions) -> _Start:
    counted = sample_inputs(model)
    stats = CalibrationStats(inputs=counted)
    stream = stats.passing(batches)
    head = _head(stream, options.fit_samples, counted)
    return _Start(_balanced(prepare(model), head, options), head, chain(head, stream), stats)


def can_balance(model: ir.Model, balance: Balance) -> bool:
    """Whether the model has a value that can be balanced, or no balancing is asked for."""
    return balance == "none" or bool(find_sites(prepare(model), inserts=balance == "activations"))


def _balanced(model: ir.Model, head: list[Arrays], options: QuantOptions) -> ir.Model:
    match options.balance:
        case "none":
            return model
        case "weights":
            return equalize(model)
        case "activations":
            return smooth(model, head)


def _observe_all(start: _Start, scheme: QuantScheme) -> Calibrated:
    seen = observe(start.model, start.stream, tensors=observed_values(start.model, scheme))
    return Calibrated(seen, check_calibration(start.stats))


def _affordable(model: ir.Model, head: list[Arrays]) -> list[Arrays]:
    """As many of the batches as fit into `_FIT_BYTES` for the largest value; one at least."""
    batch = max(1, count_samples(head[0], sample_inputs(model))) if head else 1
    sizes = [
        math.prod(size if isinstance(size, int) else batch for size in value.shape)
        for node in model.graph
        for value in node.outputs
        if value.shape is not None
    ]
    return head[: max(1, _FIT_BYTES // (4 * max(sizes, default=1)))]


def _head(stream: Iterable[Arrays], samples: int, counted: frozenset[str]) -> list[Arrays]:
    """The first batches, of as many samples in all; the stream goes on behind them."""
    held: list[Arrays] = []
    count = 0
    for batch in stream:
        held.append(batch)
        count += count_samples(batch, counted)
        if count >= samples:
            break
    return held
