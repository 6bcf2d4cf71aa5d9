"""Observe: histograms of the values in a model on streamed calibration data, in memory independent of their number."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.batches import count_samples, sample_inputs
from compiler.compress.quant.histogram import Histogram, empty_histogram
from compiler.errors import DataError, UnsupportedModel
from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.values import constant_tensor


@dataclass(frozen=True)
class Observations:
    """Histograms of the values in a model.

    Args:
        samples: Number of samples.
        tensors: Value → its histogram.
    """

    samples: int
    tensors: Mapping[str, Histogram]

    def to_bytes(self) -> bytes:
        """As a `.npz`; `observations_from_bytes` reads it back."""
        names = sorted(self.tensors)
        seen = [self.tensors[name] for name in names]
        # 2**15 stands for None: no float32 has such an exponent
        exponents = [2**15 if histogram.exponent is None else histogram.exponent for histogram in seen]
        file = io.BytesIO()
        np.savez_compressed(
            file,
            samples=np.array(self.samples),
            names=np.array(names, dtype=np.str_),
            exponents=np.array(exponents, dtype=np.int32),
            zeros=np.array([histogram.zeros for histogram in seen], dtype=np.int64),
            ranges=np.array([(histogram.low, histogram.high) for histogram in seen], dtype=np.float64).reshape(-1, 2),
            counts=np.array([histogram.counts for histogram in seen], dtype=np.int64),
        )
        return file.getvalue()


def observations_from_bytes(data: bytes) -> Observations:
    """What `Observations.to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        columns = zip(file["names"], file["exponents"], file["counts"], file["ranges"], file["zeros"], strict=True)
        tensors = {
            str(name): Histogram(
                None if exponent == 2**15 else int(exponent), counts.copy(), float(low), float(high), int(zeros)
            )
            for name, exponent, counts, (low, high), zeros in columns
        }
        return Observations(int(file["samples"]), tensors)


def observe(model: ir.Model, batches: Iterable[Arrays], *, tensors: Collection[str] | None = None) -> Observations:
    """Runs a model on calibration data and keeps a histogram of every float32 value.

    Args:
        model: Left as it is.
        batches: Input name → array; read once, a few ahead.
        tensors: Names of the values to observe; all that are computed or given at run time if None.

    Raises:
        DataError: There is no data, or some value is NaN or infinite: the first node that made one is named.
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    watched = watch(model, tensors)
    session = Unoptimized(watched)
    names = [str(value.name) for value in _observable(model) if tensors is None or value.name in tensors]
    seen = {name: empty_histogram() for name in names}
    counted = sample_inputs(model)
    samples = 0
    workers = available_cpus()
    for inputs, outputs in run_ahead(
        (partial(_run, session, batch) for batch in batches), workers=workers, ahead=workers
    ):
        samples += count_samples(inputs, counted)
        refuse_nonfinite(model, {name: array for name, array in (inputs | outputs).items() if name in seen})
        for name in names:
            # an input that a node reads as it is has no output of its own to be watched
            seen[name].add(outputs[name] if name in outputs else inputs[name])
    if not samples:
        raise DataError("there are no calibration samples", remedy="Give at least a hundred typical inputs.")
    return Observations(samples, seen)


def watch(model: ir.Model, tensors: Collection[str] | None) -> ir.Model:
    """A copy of the model that has the named values as outputs, too."""
    copy = model.clone()
    for value in list(_observable(copy)):
        computed = value.producer() is not None
        if computed and not value.is_graph_output() and (tensors is None or value.name in tensors):
            copy.graph.outputs.append(value)
    return copy


def refuse_nonfinite(model: ir.Model, values: Arrays) -> None:
    """Raises DataError that names the first node, in graph order, that made NaN or infinity."""
    for value in _observable(model):
        array = values.get(str(value.name))
        if array is None or array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        node = value.producer()
        where = f"{node.op_type} '{node.name}'" if node is not None else f"input '{value.name}'"
        bad = int((~np.isfinite(array)).sum())
        raise DataError(
            f"{bad} of {array.size} values of '{value.name}' are NaN or infinite on the calibration data",
            where=where,
            remedy="Check the data's preprocessing, or the model there: no range can include it.",
        )


def _observable(model: ir.Model) -> Iterator[ir.Value]:
    """Float32 values that are not constant, in graph order."""
    made = (value for node in model.graph for value in node.outputs if value.name)
    for value in (*model.graph.inputs, *made):
        if value.dtype == ir.DataType.FLOAT and constant_tensor(value) is None:
            yield value


def _run(session: Unoptimized, inputs: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return dict(inputs), session.run(inputs)
    except UnsupportedModel as error:
        shapes = {name: array.shape for name, array in inputs.items()}
        raise UnsupportedModel(error.what, where=f"calibration inputs of shape {shapes}") from error
