"""A delivered artifact's accuracy on data that it was not built with."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from compiler.artifact.manifest import Delivered, read_artifact
from compiler.artifact.schema import Accuracy, Gate, GateName, MeasuredOn
from compiler.driver.delivered.operate import complete, original_of
from compiler.driver.measure.accuracy import accuracy_figure, run_artifact
from compiler.errors import ArtifactError, GateFailed
from compiler.evaluate import AccuracyDrop, Preprocess, TextInputs, find_task, open_evaluation, run_dataset
from compiler.evaluate.gates import DEFAULTS, judge_gates, limits_text, nearest_limits
from compiler.fleet import Limits
from compiler.fleet.data import GENERATION, Evaluation
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.target.isolate import ChildLimits


def recheck_accuracy(
    folder: Path, *, model: Path, data: Path, task: str, child_limits: ChildLimits
) -> tuple[Gate, Accuracy]:
    """Judges a delivered artifact's accuracy on a labelled data set, by the task and the limit it was built with.

    Args:
        folder: The artifact's folder.
        model: The original model, whose accuracy is the baseline.
        data: The data set, in any form that an evaluation's `path` may have.
        task: Name of the task; empty for the one the artifact was built with.
        child_limits: What the child process may use.

    Raises:
        ArtifactError: The folder is not whole, or neither it nor the call says which task.
        DataError: The data do not fit.
        TargetUnavailable: It cannot run here.
        GateFailed: More is lost than the limit allows.
    """
    delivered = read_artifact(folder)
    artifact = complete(delivered)
    evaluation, preprocess = _evaluation(delivered, data, task)
    original = original_of(delivered, model)
    text = _text_inputs(delivered, original) if evaluation.task == GENERATION else None
    dataset = open_evaluation(evaluation, describe_inputs(original), preprocess, text)
    metric = find_task(evaluation)
    metric.check(dataset)
    limit = _limit_pct(delivered)
    batch = delivered.manifest.plan.dims["batch"].opt if "batch" in delivered.manifest.plan.dims else 1
    outputs, evidence = run_artifact(
        artifact, dataset, batch=batch, where=f"{folder}: accuracy", child_limits=child_limits
    )
    drop = metric.drop(run_dataset(original, dataset), outputs, dataset.labels, limit_pct=limit)
    accuracy = Accuracy(drop, MeasuredOn.ARTIFACT, evidence)
    (gate,) = judge_gates(Limits(accuracy_drop_pct=limit), {GateName.ACCURACY: accuracy_figure(accuracy)})
    if gate.passed is False:
        remedy = f"On these data it would pass with `{limits_text(nearest_limits([gate]))}`."
        raise GateFailed(f"{gate}: {metric.metric} {_scores(drop)}", where=str(folder), remedy=remedy)
    return gate, accuracy


def _evaluation(delivered: Delivered, data: Path, task: str) -> tuple[Evaluation, Preprocess | None]:
    """The evaluation the artifact was built with, on other data."""
    built = delivered.manifest.inputs.evaluation
    if not (task or built):
        raise ArtifactError(
            "it was built without an evaluation, so nothing says what its accuracy is",
            where=str(delivered.folder),
            remedy="Name the task: --task verification, classification, embedding or module:function.",
        )
    options = dict(built.options) if built and task in ("", built.task) else {}
    preprocess = built.preprocess if built else None
    try:
        evaluation = Evaluation(task=task or (built.task if built else ""), path=data.absolute(), **options)
        return evaluation, Preprocess(**preprocess) if preprocess else None
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"the manifest's evaluation cannot be read: {error}", where=str(delivered.folder)
        ) from error


def _text_inputs(delivered: Delivered, original: ir.Model) -> TextInputs:
    """Windows as long as those the artifact was judged by: what it reads of a prompt at once."""
    decoder = find_decoder(original)
    return TextInputs(decoder, delivered.manifest.plan.dims[decoder.sequence].max)


def _limit_pct(delivered: Delivered) -> float:
    """The limit it was built with, or the default."""
    stated = delivered.manifest.plan.gates.limits.accuracy_drop_pct
    default = DEFAULTS.accuracy_drop_pct or 0.0
    return default if stated is None else stated


def _scores(drop: AccuracyDrop | None) -> str:
    return f"{drop.reference.value_pct:.2f} -> {drop.candidate.value_pct:.2f} %" if drop else ""
