"""A model's outputs on a whole dataset under ONNX Runtime, kept in the store, and what their metric is worth."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from compiler.artifact.schema import Threshold
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.run import Stages
from compiler.evaluate import AccuracyDrop, Dataset, run_dataset, take_part
from compiler.model.numerics import Array, Arrays, load_arrays, write_arrays
from compiler.store import StageName

BATCH = 8
"""Samples of a batch, where the model does not fix it."""


def model_outputs(model: ir.Model, digest: str, dataset: Dataset, stages: Stages) -> Arrays:
    """A model's outputs on every sample, computed once and kept in the store."""

    def compute(folder: Path) -> None:
        write_arrays(folder / "outputs.npz", run_dataset(model, dataset, batch=BATCH))

    entry = stages.run(StageName.OUTPUTS, compute, model=digest, data=[dataset.digest, dataset.count])
    return read_outputs(entry.files)


def drop_of(context: BuildContext, judge: AccuracyTest, outputs: Arrays) -> AccuracyDrop:
    """What outputs on the judge's part of the samples lose against the imported model's.

    Args:
        context: The device.
        judge: The task, its data and the part of them that is judged.
        outputs: Of all samples, whatever the part.
    """
    reference = model_outputs(*context.original, judge.dataset, context.stages)
    limit, labels = context.job.plan.constraints.limits.accuracy_drop_pct, judge.dataset.labels
    if judge.part is None:
        return judge.task.drop(reference, outputs, labels, limit_pct=limit)
    (before, known), (after, _) = (
        take_part(stacked, labels, judge.part, by_person=judge.task.by_person) for stacked in (reference, outputs)
    )
    return judge.task.drop(before, after, known, limit_pct=limit)


def fleet_threshold(context: BuildContext) -> Threshold | None:
    """What accepts a pair by the imported model, on the part of the data that chooses; None without such a task."""
    judge = context.data.judge
    if judge is None or judge.task.threshold is None:
        return None
    outputs, labels = model_outputs(*context.original, judge.dataset, context.stages), judge.dataset.labels
    if judge.part is not None:
        outputs, labels = take_part(outputs, labels, judge.part, by_person=judge.task.by_person)
    return judge.task.threshold(outputs, labels)


def read_outputs(folder: Path) -> dict[str, Array]:
    """The arrays of `outputs.npz`."""
    return load_arrays(folder / "outputs.npz")
