#!/usr/bin/env python3
"""Measure how well a face model tells people apart, with ONNX Runtime on this machine.

    scripts/evaluate_face_model.py face.onnx --faces FOLDER [--json]

FOLDER holds one folder per person with aligned photographs of the face, or is a file of them as
scripts/make_face_samples.py writes. Every photograph gets a margin, is resized to the model's input and embedded; every
pair of them is compared by cosine similarity, as the task `verification` of fleet files does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from compiler.errors import CompilerError
from compiler.evaluate import Preprocess, find_task, open_evaluation, run_dataset
from compiler.fleet import Range
from compiler.fleet.data import Evaluation
from compiler.model.frontend import describe_inputs, import_model

FAR = 1e-3
FACE = Preprocess(margin_pct=10)
"""How the example's model takes photographs: a margin of a tenth, RGB from 0 to 255."""


@dataclass(frozen=True)
class FaceScores:
    """How well embeddings tell people apart.

    Args:
        faces: Count of photographs.
        people: Count of persons.
        origin: Where the photographs are from.
        tar: Share of genuine pairs accepted at the threshold that accepts at most the share `FAR` of impostor pairs.
        tar_interval: Its 95 % interval, by the bootstrap over persons.
        rank1: Share of photographs whose most similar other photograph shows the same person; of persons with several.
        balanced_accuracy: Mean of the shares of genuine pairs accepted and impostors refused, at the best threshold.
    """

    faces: int
    people: int
    origin: str
    tar: float
    tar_interval: tuple[float, float]
    rank1: float
    balanced_accuracy: float


def evaluate(path: Path, faces: Path) -> FaceScores:
    """The scores of a model on photographs.

    Raises:
        DataError: The photographs cannot be used.
        ModelError: The model cannot.
    """
    model = import_model(path, ranges={"batch": Range(1, 8, 32)})
    evaluation = Evaluation(task="verification", path=faces, far=(FAR,))
    task = find_task(evaluation)
    dataset = open_evaluation(evaluation, describe_inputs(model), FACE)
    task.check(dataset)
    score = task.score(run_dataset(model, dataset), dataset.labels)
    return FaceScores(
        faces=dataset.count,
        people=len(np.unique(dataset.labels)),  # type: ignore[arg-type]  # the check refuses data without labels
        origin=dataset.origin,
        tar=score.value_pct / 100,
        tar_interval=(_share(score.low_pct), _share(score.high_pct)),
        rank1=score.details["rank-1"] / 100,
        balanced_accuracy=score.details["balanced accuracy"] / 100,
    )


def _share(percent: float | None) -> float:
    """Of 1; NaN where the interval does not exist."""
    return math.nan if percent is None else percent / 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Measure how well a face model tells people apart.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--faces", type=Path, required=True, help="one folder per person, or a .npz file with labels")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        scores = evaluate(options.model, options.faces)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({**asdict(scores), "far": FAR}, indent=2))
    else:
        low, high = scores.tar_interval
        print(f"{scores.faces} photographs of {scores.people} people ({scores.origin})")
        print(f"TAR at FAR {FAR:g}   {scores.tar:.4f} (95 % interval {low:.4f} to {high:.4f})")
        print(f"rank-1            {scores.rank1:.4f}\nbalanced accuracy {scores.balanced_accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
