#!/usr/bin/env python3
"""Write inputs for the face model, made of faces that scikit-image ships.

    scripts/make_face_samples.py faces.npz [--samples 16]

The faces are 25 x 25 grey pictures: enough to compare builds on and to observe ranges, too small to measure accuracy.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from evaluate_face_model import crop_loosely, to_input
from make_face_model import write_file

from compiler.errors import CompilerError, MissingError, UsageError

FACES = "data/lfw_subset.npy"
FACE_COUNT = 100  # the other half of the file shows no faces
PHOTO_SIDE = 100


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


def make_samples(faces: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float32]:
    """`count` of the faces, evenly chosen, as inputs of the model (count, 3, 150, 150), 0..255."""
    from PIL import Image

    chosen = np.linspace(0, len(faces) - 1, count).round().astype(int)
    photos = [Image.fromarray((faces[i] * 255).round().astype(np.uint8)) for i in chosen]
    enlarged = [photo.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BILINEAR) for photo in photos]
    return np.stack([to_input(crop_loosely(photo)) for photo in enlarged])


def to_npz(samples: npt.NDArray[np.float32]) -> bytes:
    """An npz file with the samples under the name of the model's input."""
    buffer = io.BytesIO()
    np.savez(buffer, image=samples)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the samples; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Write inputs for the face model.")
    parser.add_argument("output", type=Path, metavar="OUT.npz")
    parser.add_argument("--samples", type=int, default=16, help=f"1 to {FACE_COUNT} (16)")
    options = parser.parse_args(arguments)
    try:
        if not 1 <= options.samples <= FACE_COUNT:
            raise UsageError(f"--samples is {options.samples}, and must be 1 to {FACE_COUNT}")
        write_file(options.output, to_npz(make_samples(load_faces(), options.samples)))
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}  {options.samples} faces")
    return 0


if __name__ == "__main__":
    sys.exit(main())
