"""How much of the task's metric a candidate loses, on the nearest thing to the device that can be run here.

artifact       run on the whole data set, where it runs on this machine itself
border model   under ONNX Runtime, where the candidate's precision is in the graph and the artifact cannot run here, or
               only under an emulator, which compares the two on a few inputs
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.artifact import Artifact, Evidence
from compiler.artifact.schema import Accuracy, AccuracyDrop, MeasuredOn
from compiler.driver.stages.any_batch import for_data_sets
from compiler.driver.stages.border import Border
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.outputs import drop_of, model_outputs, read_outputs
from compiler.evaluate import Dataset
from compiler.evaluate.gates import Figure
from compiler.evaluate.judged import OutputPart
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Array, Arrays, write_arrays
from compiler.plan import Plan
from compiler.store import StageName
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import ChildLimits
from compiler.target.request import EvaluateAnswer, EvaluateTask, ask

CHUNK_BYTES = 256 << 20
"""Samples that one child process gets in one file."""


@dataclass(frozen=True)
class StandIn:
    """What is run in place of a candidate on its device.

    Args:
        measured_on: The artifact, the border model, or nothing where neither can be run.
        note: Why not the artifact, and what speaks for the other.
    """

    measured_on: MeasuredOn
    note: str = ""


def accuracy_figure(accuracy: Accuracy) -> Figure:
    """What the gate judges."""
    drop = accuracy.drop
    if drop is None:
        return Figure(None, Evidence.NONE, why=accuracy.note)
    why = "; ".join(filter(None, (drop.why, f"measured on the {accuracy.measured_on}", accuracy.note)))
    return Figure(drop.judged_pct, accuracy.evidence, drop.rule, why)


def choose_stand_in(made: BuiltCandidate, *, whole: bool) -> StandIn:
    """The nearest thing to the device that many samples can be run on here.

    Args:
        made: The candidate.
        whole: Whether samples are complete inputs, which the artifact is not given one after another.
    """
    if made.verdict.evidence == Evidence.HOST and not whole:
        return StandIn(MeasuredOn.ARTIFACT)
    if not (made.plan.converts_graph or made.plan.rule.scheme or made.plan.rule == made.plan.baseline):
        why = "the target converts while it builds, and the artifact cannot be run on the whole data set here"
        return StandIn(MeasuredOn.NOTHING, f"{why}: {made.verdict.reason}" if made.verdict.reason else why)
    executed = made.verdict.evidence == Evidence.EMULATOR
    note = (
        f"the artifact agreed with it on {len(made.verdict.parity.points)} sets of inputs under the emulator"
        if executed
        else f"the artifact itself was not executed: {made.verdict.reason}"
    )
    return StandIn(MeasuredOn.BORDER_MODEL, note)


def measure_accuracy(context: BuildContext, judge: AccuracyTest, made: BuiltCandidate) -> Accuracy:
    """The accuracy of a built candidate."""
    stand_in = choose_stand_in(made, whole=judge.dataset.whole)
    if stand_in.measured_on == MeasuredOn.NOTHING:
        return Accuracy(None, MeasuredOn.NOTHING, Evidence.NONE, stand_in.note)
    if stand_in.measured_on == MeasuredOn.ARTIFACT:
        drop = drop_of(context, judge, artifact_outputs(context, made, judge.dataset))
    else:
        drop = border_drop(context, judge, made.plan, made.border)
    return Accuracy(drop, stand_in.measured_on, Evidence.HOST, stand_in.note)


def border_drop(context: BuildContext, judge: AccuracyTest, plan: Plan, border: Border) -> AccuracyDrop:
    """The drop of a border model under ONNX Runtime; of the plan that it was made by."""
    run = for_data_sets(context, plan, border)
    return drop_of(context, judge, model_outputs(run.load(), run.digest, judge.dataset, context.stages))


def artifact_outputs(context: BuildContext, made: BuiltCandidate, dataset: Dataset) -> Arrays:
    """The artifact's outputs on every sample, computed once on this machine and kept in the store."""

    def compute(folder: Path) -> None:
        where = f"{context.name}: accuracy"
        batch = made.plan.dims["batch"].opt
        outputs, _ = run_artifact(
            made.built.artifact, dataset, batch=batch, where=where, child_limits=context.options.child_limits
        )
        write_arrays(folder / "outputs.npz", outputs)

    entry = context.stages.run(
        StageName.OUTPUTS,
        compute,
        build=made.built.entry.digest,
        data=[dataset.digest, dataset.count],
        batch=made.plan.dims["batch"].opt,
        host=host_fingerprint(),
    )
    return read_outputs(entry.files)


def run_artifact(
    artifact: Artifact, dataset: Dataset, *, batch: int, where: str, child_limits: ChildLimits
) -> tuple[dict[str, Array], Evidence]:
    """An artifact's outputs on every sample and where it ran, in child processes of bounded memory; nothing is kept.

    Args:
        artifact: What to run.
        dataset: Its samples have an axis that counts them.
        batch: Samples per inference where the artifact does not fix it.
        where: Device and step, for messages.
        child_limits: What each child may use.

    Raises:
        TargetUnavailable: It cannot run on this machine.
    """
    sizes = [spec.shape[0] for spec in artifact.inputs if spec.shape]
    fixed = next((size for size in sizes if isinstance(size, int)), None)
    chunks = dataset.batches(_chunk_rows(artifact))
    runs = [_run_chunk(artifact, chunk, fixed or batch, dataset.judged, where, child_limits) for chunk in chunks]
    stacked = {name: np.concatenate([outputs[name] for outputs, _ in runs]) for name in runs[0][0]}
    return stacked, runs[0][1]


def _run_chunk(
    artifact: Artifact, samples: Arrays, batch: int, judged: OutputPart | None, where: str, child_limits: ChildLimits
) -> tuple[dict[str, Array], Evidence]:
    with scratch_folder() as folder:
        write_arrays(folder / "in.npz", samples)
        task = EvaluateTask(artifact, folder / "in.npz", folder / "outputs.npz", batch, judged)
        answer = ask(task, EvaluateAnswer, folder=folder, child_limits=child_limits, where=where)
        return read_outputs(folder), answer.evidence


def _chunk_rows(artifact: Artifact) -> int:
    """How many samples fit into a chunk; a free dimension beside the batch counts as 64."""
    shapes = [[size if isinstance(size, int) else 64 for size in spec.shape[1:]] for spec in artifact.inputs]
    row_bytes = sum(8 * math.prod(shape) for shape in shapes)
    return max(1, CHUNK_BYTES // max(1, row_bytes))
