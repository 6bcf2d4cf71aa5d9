"""A model on a dataset: outputs of every sample, computed in parallel and in order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from compiler.errors import DataError
from compiler.evaluate.dataset import Dataset
from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Optimized, Unoptimized


def run_dataset(model: ir.Model, dataset: Dataset, *, batch: int = 8, is_optimized: bool = False) -> dict[str, Array]:
    """Outputs by name, those of all samples stacked on the first axis, from ONNX Runtime.

    Every batch is computed on one thread, several at a time, so that results are the same on any number of cores.

    Args:
        model: Its inputs must be the dataset's.
        dataset: Read in the background; inputs of a few batches are in memory at a time.
        batch: Samples in a batch, ≥ 1, where the model does not fix it.
        is_optimized: Whether with ONNX Runtime's optimizations: faster, and not the same bits on every machine.

    Raises:
        DataError: Samples cannot be used, or outputs of different samples differ in shape.
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    fixed = dataset.fixed_batch or _fixed_in(model, dataset)
    session, workers = (Optimized if is_optimized else Unoptimized)(model), available_cpus()
    steps = (partial(_run, session, inputs, fixed, dataset) for inputs in dataset.batches(fixed or batch))
    stacks: dict[str, list[Array]] = {}
    for outputs in run_ahead(steps, workers=workers, ahead=2 * workers):
        for name, array in outputs.items():
            stacks.setdefault(name, []).append(array)
    return dict(_stacked(stacks))


def _fixed_in(model: ir.Model, dataset: Dataset) -> int | None:
    """The batch size that a model fixes, where the data set was opened for any."""
    names = {spec.name for spec in dataset.inputs}
    shapes = [value.shape for value in model.graph.inputs if value.name in names and value.shape]
    return next((int(shape[0]) for shape in shapes if isinstance(shape[0], int)), None)


def _run(session: Unoptimized | Optimized, inputs: Arrays, fixed: int | None, dataset: Dataset) -> dict[str, Array]:
    """The outputs of one batch, whose last samples are repeated to fill a fixed one and then left out."""
    if dataset.whole:
        return {
            name: array[None] if array.ndim == 0 or len(array) != 1 else array
            for name, array in session.run(inputs).items()
        }
    rows = len(next(iter(inputs.values())))
    full = inputs if fixed in (None, rows) else {name: _filled(array, fixed or rows) for name, array in inputs.items()}
    size = len(next(iter(full.values())))
    outputs = session.run(full)
    kept = dataset.judged.of(outputs) if dataset.judged else outputs
    return {name: _by_sample(array, name, size)[:rows] for name, array in kept.items()}


def _filled(array: Array, size: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _by_sample(array: Array, name: str, size: int) -> Array:
    if array.ndim and len(array) == size:
        return array
    if size == 1:
        return array[None]
    what = f"output '{name}' of shape {array.shape} has no axis for the {size} samples of a batch"
    raise DataError(what, where="evaluation", remedy="Name another: `evaluation: {output: …}`.")


def _stacked(stacks: dict[str, list[Array]]) -> Iterator[tuple[str, Array]]:
    for name, arrays in stacks.items():
        if len({array.shape[1:] for array in arrays}) > 1:
            shapes = ", ".join(sorted({str(array.shape[1:]) for array in arrays})[:5])
            what = f"output '{name}' has another shape for other samples: {shapes}"
            raise DataError(what, where="evaluation", remedy="Give samples of one size.")
        yield name, np.concatenate(arrays)
