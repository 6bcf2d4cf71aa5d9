#!/usr/bin/env python3
"""Measure how well a face model tells people apart, with ONNX Runtime on this machine.

    scripts/evaluate_face_model.py face.onnx --faces FOLDER [--json]

FOLDER holds one folder per person with at least two aligned photographs of the face (JPEG or PNG). Every photograph
gets a margin, is resized to the model's input and embedded; every pair of them is compared by cosine similarity.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.errors import CompilerError, DataError, InvalidModel

FAR = 1e-3
MARGIN = 0.1
SIDE = 150
BATCH = 20
SUFFIXES = {".jpg", ".jpeg", ".png"}

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.str_]


@dataclass(frozen=True)
class FaceScores:
    """How well embeddings tell people apart.

    Args:
        faces: Count of photographs.
        people: Count of persons.
        tar: Share of genuine pairs accepted at the threshold that accepts at most the share `FAR` of impostor pairs.
        rank1: Share of photographs whose most similar other photograph shows the same person.
        balanced_accuracy: Mean of the shares of genuine pairs accepted and impostors refused, at the best threshold.
    """

    faces: int
    people: int
    tar: float
    rank1: float
    balanced_accuracy: float


def crop_loosely(picture: Any) -> Any:
    """A PIL picture of a face with black margins of 10 %, resized bilinearly to the model's input."""
    from PIL import Image, ImageOps

    margin = round(MARGIN * picture.width)
    return ImageOps.expand(picture, margin, 0).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def to_input(picture: Any) -> Floats:
    """A PIL picture as RGB planes (3, H, W), 0..255."""
    return np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)


def load_face(path: Path) -> Floats:
    """The photograph as an input of the model (3, 150, 150)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return to_input(crop_loosely(picture.convert("RGB")))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"cannot read the photograph: {error}", where=str(path)) from error


def find_faces(folder: Path) -> list[Path]:
    """The photographs in a folder of persons, in the order of their names.

    Raises:
        DataError: There are fewer than two persons with two photographs.
    """
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    people = [path.parent.name for path in found]
    if sum(people.count(name) > 1 for name in set(people)) < 2:
        raise DataError("two persons with two photographs each are needed", where=str(folder))
    return found


def open_model(path: Path) -> Any:
    """A session of ONNX Runtime on the CPU."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise InvalidModel(f"ONNX Runtime cannot load the model: {error}", where=str(path)) from error
    shapes = [value.shape[1:] for value in session.get_inputs()]
    if shapes != [[3, SIDE, SIDE]] or len(session.get_outputs()) != 1:
        raise InvalidModel(f"one input (batch, 3, {SIDE}, {SIDE}) and one output are needed", where=str(path))
    return session


def embed(session: Any, faces: Sequence[Path]) -> Iterator[Floats]:
    """The embeddings of the photographs, one batch (N, D) after the other."""
    name = session.get_inputs()[0].name
    for start in range(0, len(faces), BATCH):
        yield session.run(None, {name: np.stack([load_face(path) for path in faces[start : start + BATCH]])})[0]


def score(embeddings: Floats, people: Labels) -> FaceScores:
    """Compare every pair of embeddings (N, D), which need not be normalised, of people (N,)."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = (unit @ unit.T).astype(np.float64)
    same = people[:, None] == people
    pairs = np.triu_indices(len(unit), k=1)
    genuine, impostor = np.sort(similarity[pairs][same[pairs]]), np.sort(similarity[pairs][~same[pairs]])
    np.fill_diagonal(similarity, -np.inf)
    return FaceScores(
        faces=len(unit),
        people=len(np.unique(people)),
        tar=true_accept_rate(genuine, impostor, far=FAR),
        rank1=float(np.mean(people[similarity.argmax(axis=1)] == people)),
        balanced_accuracy=balanced_accuracy(genuine, impostor),
    )


def true_accept_rate(genuine: npt.NDArray[np.float64], impostor: npt.NDArray[np.float64], *, far: float) -> float:
    """The share of genuine scores above the lowest threshold that lets at most `far` of the sorted impostors pass."""
    passing = int(far * len(impostor))
    return float(np.mean(genuine > impostor[-1 - passing]))


def balanced_accuracy(genuine: npt.NDArray[np.float64], impostor: npt.NDArray[np.float64]) -> float:
    """The best mean of both shares of right answers, over all thresholds; both arrays are sorted."""
    thresholds = np.concatenate([genuine, impostor])
    accepted = 1 - np.searchsorted(genuine, thresholds) / len(genuine)
    refused = np.searchsorted(impostor, thresholds) / len(impostor)
    return float(np.max(accepted + refused) / 2)


def evaluate(model: Path, folder: Path) -> FaceScores:
    """The scores of a model on a folder of persons."""
    faces = find_faces(folder)
    embeddings = np.concatenate(list(embed(open_model(model), faces)))
    if embeddings.ndim != 2 or not np.all(np.linalg.norm(embeddings, axis=1) > 0):
        raise InvalidModel("an embedding is no vector, is zero or is not a number", where=str(model))
    return score(embeddings, np.array([path.parent.name for path in faces]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Measure how well a face model tells people apart.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--faces", type=Path, required=True, metavar="FOLDER", help="one folder per person")
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
        print(f"{scores.faces} photographs of {scores.people} people")
        print(f"TAR at FAR {FAR:g}   {scores.tar:.4f}\nrank-1            {scores.rank1:.4f}")
        print(f"balanced accuracy {scores.balanced_accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
