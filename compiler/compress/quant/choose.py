"""Choose: from histograms and a scheme to a quantization plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.histogram import Histogram, empty_histogram
from compiler.compress.quant.observe import Observations
from compiler.compress.quant.options import QuantOptions
from compiler.compress.quant.place import Placement, place, run_time_inputs
from compiler.compress.quant.plan import LayerQuant, QuantPlan, TensorQuant
from compiler.compress.quant.ranges import quantize_tensor
from compiler.compress.quant.weights import quantize_weight
from compiler.errors import DataError, UnsupportedModel
from compiler.passes.quantized import is_quantized
from compiler.passes.values import constant_of, constant_tensor
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat

# the opset with which QuantizeLinear took the type
_OPSETS = {"int4": 21, "uint4": 21, "float8e4m3fn": 19}
# QuantizeLinear got its `axis`, and with it one scale per channel, with opset 13
_OPSET_CHANNELS = 13
_OPSET_HALF_SCALES = 19
"""The first in which a scale, and with it the result, may be float16."""


def choose(
    model: ir.Model,
    observations: Observations | None,
    scheme: QuantScheme,
    options: QuantOptions | None = None,
    *,
    keep_float: Mapping[str, str] | None = None,
) -> QuantPlan:
    """The plan for a model.

    Args:
        model: In float32, with types and shapes inferred and every node named; left as it is.
        observations: Histograms of this model; may be None where the scheme quantizes weights only.
        scheme: The target's.
        options: The quantizer's; the defaults if None.
        keep_float: Node → why it stays in floating point.

    Raises:
        UnsupportedModel: The model is quantized already, or there is nothing in it to quantize.
        DataError: A value that needs a range was not observed.
    """
    if is_quantized(model):
        raise UnsupportedModel(
            "the model is quantized already, and is not quantized a second time",
            remedy="Build it as it is: it runs in the precision that it is written in.",
        )
    placed = place(model, scheme, keep_float or {})
    seen = _observed(placed, observations)
    plan = QuantPlan(
        scheme=scheme.name,
        layers=tuple(_layers(model, placed, scheme)),
        tensors=_tensors(placed, seen, options or QuantOptions(), scheme.compute),
        weights=dict(_weights(placed, scheme.compute)),
        reads={str(node.name): tuple(indices) for node, indices in placed.reads.items() if indices},
        int_biases=tuple(_int_biases(placed, scheme)),
        opset=_opset(placed, scheme),
        compute=scheme.compute,
    )
    if not plan.tensors and not plan.weights:
        reasons = "; ".join(sorted({f"{layer.op}: {layer.reason}" for layer in plan.layers}))
        said = f" ({reasons})" if reasons else f": it has none of {', '.join(scheme.ops)}"
        raise UnsupportedModel(f"no operator of the model can be quantized for {scheme.name}{said}")
    return plan


def observed_values(model: ir.Model, scheme: QuantScheme) -> list[str]:
    """Names of all values that may need a range; which layers stay float is not known yet."""
    read = (
        node.inputs[index]
        for node in model.graph
        if node.domain == "" and node.op_type in scheme.ops
        for index, _ in run_time_inputs(node, scheme.ops[node.op_type])
    )
    moving = (value for value in read if value is not None and constant_tensor(value) is None)
    return list(dict.fromkeys(str(value.name) for value in moving if value.dtype == ir.DataType.FLOAT))


def _observed(placed: Placement, observations: Observations | None) -> dict[ir.Value, Histogram]:
    tensors = observations.tensors if observations is not None else {}
    missing = [str(value.name) for value in placed.formats if value.name not in tensors]
    if missing:
        raise DataError(
            f"{len(missing)} values have no observed range: " + ", ".join(missing[:5]),
            remedy="Observe the model on calibration data: a hundred or more typical inputs.",
        )
    return {value: tensors[str(value.name)] for value in placed.formats}


def _tensors(
    placed: Placement, seen: Mapping[ir.Value, Histogram], options: QuantOptions, compute: str
) -> dict[str, TensorQuant]:
    joined: dict[ir.Value, Histogram] = {}
    members: dict[ir.Value, list[ir.Value]] = {}
    for value, histogram in seen.items():
        members.setdefault(placed.group(value), []).append(value)
        joined[placed.group(value)] = _join(joined.get(placed.group(value)), histogram)
    formats = {
        root: quantize_tensor(joined[root], placed.formats[values[0]], options, compute=compute)
        for root, values in members.items()
    }
    return {str(value.name): formats[placed.group(value)] for value in seen}


def _join(first: Histogram | None, second: Histogram) -> Histogram:
    both = empty_histogram()
    for histogram in (first, second):
        if histogram is None:
            continue
        both.low, both.high = min(both.low, histogram.low), max(both.high, histogram.high)
        both.zeros += histogram.zeros
        if histogram.exponent is None:
            continue
        copy = Histogram(histogram.exponent, histogram.counts)
        both.grow(histogram.exponent)
        copy.grow(both.exponent or 0)
        both.grow(copy.exponent or 0)
        both.counts = both.counts + copy.counts
    return both


def _weights(placed: Placement, compute: str) -> Iterator[tuple[str, TensorQuant]]:
    for node, formats in placed.weights.items():
        for index, format_ in formats.items():
            weight = constant_of(node.inputs[index])
            if weight is None:
                continue
            if not np.isfinite(weight).all():
                raise UnsupportedModel(
                    f"{int((~np.isfinite(weight)).sum())} weights are NaN or infinite",
                    where=f"{node.op_type} '{node.name}'",
                )
            yield f"{node.name}/{index}", quantize_weight(weight.astype(np.float32), node, format_, compute=compute)


def _layers(model: ir.Model, placed: Placement, scheme: QuantScheme) -> Iterator[LayerQuant]:
    for node in model.graph:
        if node in placed.why:
            passing = not scheme.ops[node.op_type].quantizes_output
            precision = _precision(node, placed, scheme)
            yield LayerQuant(str(node.name), node.op_type, precision, placed.why[node], passing)
        elif node in placed.why_float:
            yield LayerQuant(str(node.name), node.op_type, "float", placed.why_float[node])


def _precision(node: ir.Node, placed: Placement, scheme: QuantScheme) -> str:
    """`int8`, `fp8`, or `int4-weights` where only the weights are in few bits."""
    formats: list[TensorFormat] = list(placed.weights.get(node, {}).values())
    short = {"float8e4m3fn": "fp8"}.get(formats[0].dtype, formats[0].dtype) if formats else ""
    if not placed.reads.get(node):
        return f"{short}-weights" if short else "int8"
    return short or "int8"


def _int_biases(placed: Placement, scheme: QuantScheme) -> Iterator[str]:
    for node, formats in placed.weights.items():
        rule: OpScheme = scheme.ops[node.op_type]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if not rule.float_bias and formats and placed.reads.get(node) and constant_of(bias) is not None:
            yield str(node.name)


def _opset(placed: Placement, scheme: QuantScheme) -> int:
    formats = [*placed.formats.values(), *(format_ for each in placed.weights.values() for format_ in each.values())]
    needed = [_OPSETS.get(format_.dtype, _OPSET_CHANNELS) for format_ in formats]
    return max([*needed, _OPSET_HALF_SCALES if scheme.compute != "fp32" else 0], default=_OPSET_CHANNELS)
