"""How much of the task's metric a candidate loses, on the nearest thing to the device that can be run here.

artifact       run on the whole data set, where it runs on this machine itself
border model   under ONNX Runtime, where the candidate's precision is in the graph and the artifact cannot run here, or
               only under an emulator, which compares the two on a few inputs
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact import Artifact, Evidence, artifact_to_dict
from compiler.driver.stages.border import Border
from compiler.driver.stages.candidate import Made
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.outputs import drop_of, model_outputs, read_outputs
from compiler.evaluate import AccuracyDrop, Dataset
from compiler.evaluate.certify import Certified
from compiler.evaluate.gates import Figure
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Array, Arrays, write_arrays
from compiler.store import Stage
from compiler.store.digests import code_digest
from compiler.target.isolate import ChildLimits, run_child

CHUNK_BYTES = 256 << 20
"""Samples that one child process gets in one file."""


@dataclass(frozen=True)
class Accuracy:
    """A candidate's accuracy.

    Args:
        drop: The metric before and after, and the drop that is judged; None where nothing could be run.
        measured_on: `artifact` or `border model`.
        evidence: Where.
        why: Why there is none, or what its reader should know.
    """

    drop: AccuracyDrop | None
    measured_on: str
    evidence: Evidence
    why: str = ""

    @property
    def figure(self) -> Figure:
        """What the gate judges."""
        if self.drop is None:
            return Figure(None, Evidence.NONE, why=self.why)
        why = "; ".join(filter(None, (self.drop.why, f"measured on the {self.measured_on}", self.why)))
        return Figure(self.drop.judged_pct, self.evidence, self.drop.rule, why)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval that does not exist is null."""
        drop = _finite(_drop_to_dict(self.drop)) if self.drop else {}
        return {**drop, "measured_on": self.measured_on, "evidence": str(self.evidence), "note": self.why}


@dataclass(frozen=True)
class MeasuredOn:
    """What is run in place of a candidate on its device.

    Args:
        runs: `artifact` or `border model`; empty where neither can be.
        note: Why not the artifact, and what speaks for the other.
    """

    runs: str
    note: str = ""


def choose_measured_on(made: Made, *, whole: bool) -> MeasuredOn:
    """The nearest thing to the device that many samples can be run on here.

    Args:
        made: The candidate.
        whole: Whether samples are complete inputs, which the artifact is not given one after another.
    """
    if made.verdict.evidence == Evidence.HOST and not whole:
        return MeasuredOn("artifact")
    if not (made.plan.converts_graph or made.plan.rule.scheme or made.plan.rule == made.plan.baseline):
        why = "the target converts while it builds, and the artifact cannot be run on the whole data set here"
        return MeasuredOn("", f"{why}: {made.verdict.reason}" if made.verdict.reason else why)
    executed = made.verdict.evidence == Evidence.EMULATOR
    note = (
        f"the artifact agreed with it on {len(made.points)} sets of inputs under the emulator"
        if executed
        else f"the artifact itself was not executed: {made.verdict.reason}"
    )
    return MeasuredOn("border model", note)


def measure_accuracy(context: BuildContext, judge: AccuracyTest, made: Made) -> Accuracy:
    """The accuracy of a built candidate."""
    measured_on = choose_measured_on(made, whole=judge.dataset.whole)
    if not measured_on.runs:
        return Accuracy(None, "", Evidence.NONE, measured_on.note)
    if measured_on.runs == "artifact":
        drop = drop_of(context, judge, artifact_outputs(context, made, judge.dataset))
    else:
        drop = border_drop(context, judge, made.border)
    return Accuracy(drop, measured_on.runs, Evidence.HOST, measured_on.note)


def border_drop(context: BuildContext, judge: AccuracyTest, border: Border) -> AccuracyDrop:
    """The drop of a border model under ONNX Runtime."""
    return drop_of(context, judge, model_outputs(border.load(), border.digest, judge.dataset, context.store))


def artifact_outputs(context: BuildContext, made: Made, dataset: Dataset) -> Arrays:
    """The artifact's outputs on every sample, computed once on this machine and kept in the store."""
    parts = (
        ("build", made.built.entry.digest),
        ("data", dataset.digest),
        ("samples", str(dataset.count)),
        ("host", host_fingerprint()),
        ("compiler", code_digest("compiler.target.worker_measure")),
    )

    def compute(folder: Path) -> None:
        where = f"{context.name}: accuracy"
        batch = made.plan.dims["batch"].opt
        found, _ = run_artifact(made.built.artifact, dataset, batch=batch, where=where, limits=context.options.child)
        write_arrays(folder / "outputs.npz", found)

    return read_outputs(context.store.obtain(Stage("outputs", parts), compute).files)


def run_artifact(
    artifact: Artifact, dataset: Dataset, *, batch: int, where: str, limits: ChildLimits
) -> tuple[dict[str, Array], Evidence]:
    """An artifact's outputs on every sample and where it ran, in child processes of bounded memory; nothing is kept.

    Args:
        artifact: What to run.
        dataset: Its samples have an axis that counts them.
        batch: Samples per inference where the artifact does not fix it.
        where: Device and step, for messages.
        limits: What each child may use.

    Raises:
        TargetUnavailable: It cannot run on this machine.
    """
    sizes = [spec.shape[0] for spec in artifact.inputs if spec.shape]
    fixed = next((size for size in sizes if isinstance(size, int)), None)
    chunks = dataset.batches(_chunk_rows(artifact))
    found = [_run_chunk(artifact, chunk, fixed or batch, where, limits) for chunk in chunks]
    stacked = {name: np.concatenate([outputs[name] for outputs, _ in found]) for name in found[0][0]}
    return stacked, found[0][1]


def _run_chunk(
    artifact: Artifact, samples: Arrays, batch: int, where: str, limits: ChildLimits
) -> tuple[dict[str, Array], Evidence]:
    with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
        folder = Path(name)
        write_arrays(folder / "in.npz", samples)
        request = {
            "artifact": {**artifact_to_dict(artifact), "root": str(artifact.root)},
            "inputs": str(folder / "in.npz"),
            "outputs": str(folder / "outputs.npz"),
            "batch": batch,
        }
        said = run_child("evaluate", request, folder=folder, limits=limits, where=where)
        return read_outputs(folder), Evidence(said["evidence"])


def _chunk_rows(artifact: Artifact) -> int:
    """How many samples fit into a chunk; a free dimension beside the batch counts as 64."""
    shapes = [[size if isinstance(size, int) else 64 for size in spec.shape[1:]] for spec in artifact.inputs]
    row_bytes = sum(8 * math.prod(shape) for shape in shapes)
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def certified_to_dict(certified: Certified) -> dict[str, Any]:
    """JSON-ready; an interval that does not exist is null."""
    return {**_finite(asdict(certified)), "how": str(certified.how)}


def _drop_to_dict(drop: AccuracyDrop) -> dict[str, Any]:
    value = asdict(replace(drop, measured=None))
    return {name: part for name, part in value.items() if name != "measured"}


def _finite(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_finite_items(value))


def _finite_items(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield key, _finite(item)
        else:
            yield key, None if isinstance(item, float) and not math.isfinite(item) else item
