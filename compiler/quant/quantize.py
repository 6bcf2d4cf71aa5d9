"""The whole of it: from a float model, calibration data and a scheme to a quantized model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from compiler.errors import DataError, UnsupportedModel
from compiler.numerics import Arrays
from compiler.passes.quantized import is_quantized
from compiler.quant.apply import apply
from compiler.quant.calibration import CalibrationStats, check_calibration
from compiler.quant.choose import choose, observed_values
from compiler.quant.correct import correct_biases
from compiler.quant.observe import Observations, observe
from compiler.quant.options import QuantOptions
from compiler.quant.plan import QuantPlan
from compiler.scheme import QuantScheme

_FIT_BYTES = 64 << 20
"""Of one value over all samples that layers are fitted on; a dozen such values are in memory at a time."""


@dataclass(frozen=True)
class Quantized:
    """A quantized model and how it came about.

    Args:
        model: With Q/DQ; inputs and outputs are those of the float model.
        plan: What was decided.
        observations: What it was decided from; None for a scheme of weights only.
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
) -> Quantized:
    """Quantizes a model for a scheme.

    Args:
        model: In float32, with types and shapes inferred and every node named; left as it is.
        batches: Calibration data, input name → array; read once. None where the scheme needs none.
        scheme: The target's.
        options: How; the defaults if None.
        keep_float: Node → why it stays in floating point.

    Raises:
        UnsupportedModel: The model is quantized already, has nothing to quantize, or does not run.
        DataError: There are no calibration data, or the model computes NaN or infinity on them.
    """
    if is_quantized(model):
        raise UnsupportedModel("the model is quantized already, and is not quantized a second time")
    how = options or QuantOptions()
    if batches is None and scheme.needs_calibration:
        raise DataError(
            f"{scheme.name} needs calibration data: ranges of random inputs would be those of noise",
            remedy="Give a hundred or more typical inputs.",
        )
    if batches is None or not scheme.needs_calibration:
        plan = choose(model, None, scheme, how, keep_float=keep_float)
        return Quantized(apply(model, plan), plan, None)
    stats = CalibrationStats()
    stream = stats.passing(batches)
    head = _head(stream, how.fit_samples)
    seen = observe(model, chain(head, stream), tensors=observed_values(model, scheme, keep_float))
    plan = choose(model, seen, scheme, how, keep_float=keep_float)
    fitted = correct_biases(model, plan, _affordable(model, head)) if how.correct else model
    return Quantized(apply(fitted, plan), plan, seen, check_calibration(stats))


def _affordable(model: ir.Model, head: list[Arrays]) -> list[Arrays]:
    """As many of the batches as keep the largest values of a layer in bounded memory; one at least."""
    batch = max((len(array) for array in head[0].values() if array.ndim), default=1) if head else 1
    sizes = [
        math.prod(size if isinstance(size, int) else batch for size in value.shape)
        for node in model.graph
        for value in node.outputs
        if value.shape is not None
    ]
    return head[: max(1, _FIT_BYTES // (4 * max(sizes, default=1)))]


def _head(stream: Iterable[Arrays], samples: int) -> list[Arrays]:
    """The first batches, of as many samples in all; the stream goes on behind them."""
    held: list[Arrays] = []
    count = 0
    for batch in stream:
        held.append(batch)
        count += len(next(iter(batch.values()), ()))
        if count >= samples:
            break
    return held
