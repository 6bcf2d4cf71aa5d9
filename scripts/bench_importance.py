#!/usr/bin/env python3
"""What a channel is worth, measured: every measure of importance on a face model, cut, repaired and judged on others.

    scripts/bench_importance.py examples/face/face.onnx --faces FOLDER [--ratio 0.3] [--measure redundancy]

FOLDER holds one folder per person with aligned photographs. Photographs of every other person calibrate, those of the
rest judge: TAR@FAR=1e-3, and the mean cosine of embeddings with the original model's. Writes
benchmarks/importance.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
from bench_record import ROOT, commit, machine, versions

from compiler.compress.prune import find_order, prune
from compiler.compress.prune.importance import Measure
from compiler.evaluate import Preprocess, Task, find_task, open_evaluation
from compiler.fleet import Range
from compiler.fleet.data import Evaluation
from compiler.model.frontend import describe_inputs, import_model
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.run import run_passes

BATCH = 8
MULTIPLE = 8
FACE = Preprocess(margin_pct=10)


class Faces:
    """Photographs of some people to calibrate on, and of others to judge by."""

    def __init__(self, model: ir.Model, folder: Path) -> None:
        evaluation = Evaluation(task="verification", path=folder, far=(1e-3,))
        data = open_evaluation(evaluation, describe_inputs(model), FACE)
        (self.name,) = (spec.name for spec in describe_inputs(model))
        pictures = np.concatenate([batch[self.name] for batch in data.batches(BATCH)])
        labels = np.asarray(data.labels)
        calibrates = np.isin(labels, np.unique(labels)[::2])
        self.task: Task = find_task(evaluation)
        self.seen, self.others, self.labels = pictures[calibrates], pictures[~calibrates], labels[~calibrates]

    def calibration(self) -> Iterator[Arrays]:
        """What the model is pruned on."""
        return ({self.name: self.seen[at : at + BATCH]} for at in range(0, len(self.seen), BATCH))

    def embed(self, model: ir.Model) -> dict[str, Array]:
        """The model's outputs on the other people."""
        session = Unoptimized(model)
        runs = [session.run({self.name: self.others[at : at + BATCH]}) for at in range(0, len(self.others), BATCH)]
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description="Compare measures of what a channel is worth.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--faces", type=Path, required=True, help="one folder per person")
    parser.add_argument(
        "--ratio", type=float, action="append", help="share of the multiply-accumulates; 0.3 by default"
    )
    parser.add_argument("--measure", action="append", choices=get_args(Measure), help="all of them by default")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "importance.json")
    options = parser.parse_args(arguments)
    model = import_model(options.model, ranges={"batch": Range(1, BATCH, BATCH)})
    run_passes(model, load_passes(list(PORTABLE)))
    faces = Faces(model, options.faces)
    original = faces.embed(model)
    rows = []
    for measure in options.measure or get_args(Measure):
        rows += _rows(model, faces, original, measure, options.ratio or [0.3])
        print(json.dumps(rows[-1]), flush=True)
    value = {
        "what": "pruned with each measure of importance, repaired, judged on people that were not calibrated on",
        **commit(),
        "machine": {**machine(), "load": os.getloadavg()[0]},
        "versions": versions(["numpy", "onnxruntime", "onnx-ir"]),
        "calibration_photographs": len(faces.seen),
        "judged_photographs": len(faces.others),
        "original_tar_pct": _tar(faces, original),
        "rows": rows,
    }
    options.output.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _rows(
    model: ir.Model, faces: Faces, original: Arrays, measure: Measure, ratios: Sequence[float]
) -> list[dict[str, Any]]:
    started = time.perf_counter()
    order = find_order(model, faces.calibration, measure=measure)
    order_s = time.perf_counter() - started
    rows = []
    for ratio in ratios:
        started = time.perf_counter()
        found = prune(model, order, faces.calibration, ratio=ratio, multiple=MULTIPLE)
        outputs = faces.embed(found.model)
        rows.append(
            {
                "measure": measure,
                "macs_pruned": round(found.plan.ratio, 4),
                "tar_pct": _tar(faces, outputs),
                "cosine": round(_cosine(original, outputs), 5),
                "order_s": round(order_s, 1),
                "prune_s": round(time.perf_counter() - started, 1),
            }
        )
    return rows


def _tar(faces: Faces, outputs: Arrays) -> float:
    return round(faces.task.score(outputs, faces.labels).value_pct, 2)


def _cosine(wanted: Arrays, found: Arrays) -> float:
    a, b = (np.asarray(next(iter(one.values())), np.float64) for one in (wanted, found))
    return float((np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())


if __name__ == "__main__":
    main()
