"""What a device's calibration data look like, and the float model's outputs on them, kept in the store as figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import DriftFigures, TensorFigures
from compiler.driver.stages.calibrate import BATCH
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.outputs import model_outputs
from compiler.evaluate import Dataset
from compiler.evaluate.drift import describe, input_statistics, output_statistics
from compiler.model.numerics import Array, Arrays
from compiler.store import StageName, read_result, write_result

_FIGURES = "drift.json"

MOST_SAMPLES = 1024
"""Samples that the figures are of: ten bins of more say the same."""

_NUMBERS = "iuf"


def make_drift_figures(context: BuildContext) -> DriftFigures | None:
    """What a device's calibration data look like; None where the fleet file names none, or nothing reads it."""
    dataset = context.data.calibration
    if dataset is None:
        return None
    outputs = model_outputs(*context.original, dataset, context.stages)

    def make(folder: Path) -> None:
        stacked = _stack(dataset)
        kept = {name: array[:MOST_SAMPLES] for name, array in outputs.items()}
        sides = {
            "inputs": {name: describe(array, input_statistics(array)) for name, array in _numbers(stacked)},
            "outputs": {name: describe(array, output_statistics(array)) for name, array in _numbers(kept)},
        }
        write_result(folder, _FIGURES, {side: {n: to_json(t) for n, t in told.items()} for side, told in sides.items()})

    entry = context.stages.run(
        StageName.DRIFT, make, data=[dataset.digest, dataset.count], model=context.original[1], most=MOST_SAMPLES
    )
    value = read_result(entry, _FIGURES)
    sides = {side: {name: parse(TensorFigures, told) for name, told in value[side].items()} for side in value}
    return DriftFigures(min(dataset.count, MOST_SAMPLES), dataset.digest, sides["inputs"], sides["outputs"])


def _stack(dataset: Dataset) -> Arrays:
    """The first samples of every input that counts samples along its first axis."""
    parts: dict[str, list[Array]] = {}
    count = 0
    for batch in dataset.batches(BATCH):
        for name, array in batch.items():
            parts.setdefault(name, []).append(array)
        count += BATCH
        if count >= MOST_SAMPLES:
            break
    return {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays[0].ndim}


def _numbers(arrays: Arrays) -> list[tuple[str, Array]]:
    return [(name, array) for name, array in arrays.items() if array.size and array.dtype.kind in _NUMBERS]
