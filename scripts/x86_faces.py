"""The face model inside the fleet's accuracy limit on real photographs: how it is built, and what it loses.

Faces of scikit-image calibrate and repair, the photographs judge: as in the demo with FLEETC_FACES.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_models import BenchModel
from bench_record import Figures
from make_face_samples import INPUT
from make_face_samples import main as make_face_samples

from compiler.artifact.manifest import read_artifact
from compiler.driver.measure.accuracy import run_artifact
from compiler.evaluate import Dataset, find_task, open_evaluation, run_dataset
from compiler.fleet import Range
from compiler.fleet.data import Evaluation
from compiler.model.frontend import import_model
from compiler.model.numerics import Arrays
from compiler.target.isolate import ChildLimits

WITHIN_POINTS = 2.0
"""Points of TAR at FAR 0.001 that a build may lose: the limit of the example's fleet."""

FLEET = """schema: 1
model: {model}
calibration: {{path: {calibration}}}
evaluation: {{task: verification, path: {photographs}}}
limits: {{accuracy_drop_pct: {limit}}}
prune: {prune}
devices:
  board: {{profile: {profile}, dims: {dims}}}
"""


@dataclass(frozen=True)
class Faces:
    """What calibrates the face model, and what judges it.

    Args:
        model: The face model.
        calibration: A .npz file of faces, without labels.
        photographs: A .npz file of others, with the person that each shows.
    """

    model: BenchModel
    calibration: Path
    photographs: Path

    def fleet(self, **given: object) -> str:
        """A fleet file of one device, `board`, with the keys that `FLEET` leaves open."""
        paths = {"model": self.model.source, "calibration": self.calibration, "photographs": self.photographs}
        resolved = {name: path.resolve() for name, path in paths.items()}
        return FLEET.format(**resolved, limit=WITHIN_POINTS, **given)

    @property
    def dataset(self) -> Dataset:
        """The photographs, with labels."""
        return open_evaluation(self._evaluation, (INPUT,))

    @property
    def _evaluation(self) -> Evaluation:
        return Evaluation(task="verification", path=self.photographs)

    def expected(self) -> Arrays:
        """What the model in float32 gives for the photographs, by ONNX Runtime."""
        return run_dataset(import_model(self.model.source, ranges={"batch": Range(1, 8, 32)}), self.dataset)

    def loss(self, expected: Arrays, outputs: Arrays) -> Figures:
        """Points of the metric that outputs for the photographs lose, with the interval of 95 %."""
        labels = self.dataset.labels
        drop = find_task(self._evaluation).drop(expected, outputs, labels, limit_pct=WITHIN_POINTS)
        return {
            "metric": drop.metric,
            "pct": [round(score.value_pct, 2) for score in (drop.reference, drop.candidate)],
            "points_lost": round(drop.drop_pct, 2),
            "interval": [None if end is None else round(end, 2) for end in (drop.low_pct, drop.high_pct)],
        }


def prepare_faces(model: BenchModel, folder: Path) -> Faces:
    """The files of faces beside a model; `folder` has the photographs, one folder per person."""
    faces = Faces(model, model.folder / "faces.npz", model.folder / "photographs.npz")
    if make_face_samples([str(faces.calibration), "--pairs", str(faces.photographs), "--faces", str(folder)]):
        raise SystemExit(f"no photographs in {folder}")
    return faces


def run_build(folder: Path, dataset: Dataset) -> Arrays:
    """What a delivered build gives for the photographs."""
    artifact = read_artifact(folder).artifact
    return run_artifact(artifact, dataset, batch=1, where=folder.parent.name, child_limits=ChildLimits())[0]


def run_openvino(path: Path, dataset: Dataset) -> Arrays:
    """What OpenVINO gives for them with a file of its own, one after another."""
    import openvino

    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU")
    output = compiled.output(0)
    rows = [compiled([batch[INPUT.name]])[output].copy() for batch in dataset.batches(1)]
    return {output.get_any_name(): np.concatenate(rows)}


def chosen_in(folder: Path) -> Figures:
    """What the search for a delivered build came to: precision, share of multiply-accumulates that was cut, and why."""
    manifest = read_artifact(folder).manifest
    return {
        "precision": manifest.decision.precision,
        "macs_saved": round(manifest.pruning.ratio, 3) if manifest.pruning else 0.0,
        "why": [manifest.decision.reason, manifest.plan.decisions["pruning"].reason],
    }
