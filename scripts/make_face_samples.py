#!/usr/bin/env python3
"""Write the data of the face example: faces to calibrate with, and faces to judge accuracy by.

    scripts/make_face_samples.py faces.npz --pairs pairs.npz [--faces FOLDER]

Without FOLDER everything is made of the 100 real faces of 25 x 25 that scikit-image ships: every third is for
calibration, and of each of the others two copies are made that are shifted, blurred, lit and noisy, so that a face and
its copies are genuine pairs. These are synthetic pairs, and the file says so: they tell how much a build loses against
the float model, not how well the model knows people.

FOLDER holds real photographs, one folder per person (aligned, cropped to the face). Then accuracy is judged by all of
them, and all of scikit-image's faces are for calibration: no photograph serves both.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from evaluate_face_model import FACE
from make_face_model import write_file

from compiler.errors import CompilerError, MissingError
from compiler.evaluate import open_dataset
from compiler.evaluate.images import to_input
from compiler.model.spec import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

FACES = "data/lfw_subset.npy"
FACE_COUNT = 100  # the other half of the file shows no faces
PHOTO_SIDE = 100
INPUT = TensorSpec("image", "float32", ("batch", 3, 150, 150))

COPIES = 2
SEED = 20261124
SHIFT = 5.0  # most pixels of 100, either way
BLUR = 1.5  # largest standard deviation, in pixels
CONTRAST = 0.25  # largest change of it
LIGHT = 25.0  # most of 255, either way
NOISE = 6.0  # standard deviation, of 255

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Faces:
    """Inputs of the model (N, 3, 150, 150), 0..255; who each shows, where that matters; and where they are from."""

    images: Floats
    labels: npt.NDArray[np.str_] | None
    origin: str

    def to_npz(self) -> bytes:
        """A .npz file with the inputs under the name of the model's."""
        buffer = io.BytesIO()
        if self.labels is None:
            np.savez_compressed(buffer, image=self.images, origin=np.array(self.origin))
        else:
            np.savez_compressed(buffer, image=self.images, labels=self.labels, origin=np.array(self.origin))
        return buffer.getvalue()


def load_faces() -> npt.NDArray[np.float64]:
    """The faces (100, 25, 25) from 0 to 1, out of scikit-image's folder, which never asks the network.

    Raises:
        MissingError: scikit-image is not installed, or without its pictures.
    """
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / FACES if spec and spec.origin else None
    if path is None or not path.is_file():
        raise MissingError("scikit-image's faces are not installed", remedy="pip install 'fleetc[face]'")
    faces: npt.NDArray[np.float64] = np.load(path, allow_pickle=False)[:FACE_COUNT]
    return faces


def calibration_faces(faces: npt.NDArray[np.float64], *, every: int) -> Faces:
    """Each `every`-th face, the second of them first."""
    chosen = range(1 % every, len(faces), every)
    said = f"{len(chosen)} faces of scikit-image's lfw_subset"
    return Faces(_inputs([photograph(faces[index]) for index in chosen]), None, said)


def synthetic_pairs(faces: npt.NDArray[np.float64], *, but_every: int) -> Faces:
    """The faces that calibration leaves, each followed by its altered copies."""
    random = np.random.default_rng(SEED)
    chosen = [index for index in range(len(faces)) if index % but_every != 1 % but_every]
    photos = [photograph(faces[index]) for index in chosen]
    altered = [[photo, *(alter(photo, random) for _ in range(COPIES))] for photo in photos]
    said = f"synthetic pairs: {len(chosen)} faces of scikit-image's lfw_subset, each with {COPIES} altered copies"
    labels = np.repeat([f"face-{index:03d}" for index in chosen], 1 + COPIES)
    return Faces(_inputs([photo for group in altered for photo in group]), labels, said)


def real_pairs(folder: Path) -> Faces:
    """The photographs of a folder of people.

    Raises:
        DataError: There are none, or some cannot be read.
    """
    dataset = open_dataset(folder, (INPUT,), preprocess=FACE, labelled=True)
    images = np.concatenate([batch[INPUT.name] for batch in dataset.batches(32)]).astype(np.float32)
    labels = np.asarray(dataset.labels, np.str_)
    said = f"{dataset.count} real photographs of {len(np.unique(labels))} people, {dataset.origin}"
    return Faces(images, labels, said)


def photograph(face: npt.NDArray[np.float64]) -> Image:
    """A face (25, 25) from 0 to 1 as a grey picture of 100 x 100."""
    from PIL import Image

    grey = Image.fromarray((face * 255).round().astype(np.uint8))
    return grey.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BILINEAR)


def alter(photo: Image, random: np.random.Generator) -> Image:
    """The photograph as it might have been taken a moment later: shifted, blurred, lit otherwise, noisy."""
    from PIL import Image, ImageFilter

    across, down = random.uniform(-SHIFT, SHIFT, 2)
    moved = photo.transform(
        photo.size, Image.Transform.AFFINE, (1, 0, across, 0, 1, down), Image.Resampling.BILINEAR
    ).filter(ImageFilter.GaussianBlur(random.uniform(0, BLUR)))
    values = 128 + (np.asarray(moved, np.float64) - 128) * (1 + random.uniform(-CONTRAST, CONTRAST))
    values += random.uniform(-LIGHT, LIGHT) + random.normal(0, NOISE, values.shape)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _inputs(photos: Sequence[Image]) -> Floats:
    return np.concatenate([to_input(photo, INPUT, FACE) for photo in photos]).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Write the data of the face example.")
    parser.add_argument("output", type=Path, metavar="FACES.npz", help="faces to calibrate with")
    parser.add_argument("--pairs", type=Path, metavar="PAIRS.npz", help="also write faces to judge accuracy by")
    parser.add_argument("--faces", type=Path, metavar="FOLDER", help="judge by these photographs, a folder per person")
    options = parser.parse_args(arguments)
    every = 1 if options.faces else 3
    try:
        written = {options.output: calibration_faces(load_faces(), every=every)}
        if options.pairs:
            real = options.faces and real_pairs(options.faces)
            written[options.pairs] = real or synthetic_pairs(load_faces(), but_every=every)
        for path, faces in written.items():
            write_file(path, faces.to_npz())
            print(f"{path}  {faces.origin}")
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
