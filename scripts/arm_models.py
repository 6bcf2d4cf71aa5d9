"""The models that ARM builds are measured with, and their inputs; made where they are not there yet."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from bench_record import ROOT
from make_convolutional_model import make_images

from compiler.fleet import Range
from compiler.model.frontend import bind_shapes, read_model
from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.run import run_passes

SAMPLES = 4
SAMPLE_SEED, INPUT_SEED = 7, 99

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True)
class BenchModel:
    """One model.

    Args:
        name: Short name.
        side: Rows and columns of its input.
        unit: What a white pixel is in its input.
        folder: Where its files are.
    """

    name: str
    side: int
    unit: float
    folder: Path

    @property
    def source(self) -> Path:
        """The model as a user has it."""
        return self.folder / "model.onnx"

    @property
    def border(self) -> Path:
        """After the portable half, for one picture: what the peers are given too."""
        return self.folder / "border.onnx"

    @property
    def digest(self) -> str:
        """SHA-256 of the border model, in hex."""
        return hashlib.sha256(self.border.read_bytes()).hexdigest()

    def samples(self) -> Floats:
        """Pictures to calibrate with."""
        return (make_images(SAMPLES, SAMPLE_SEED, self.side) * np.float32(self.unit)).astype(np.float32)

    def picture(self) -> Floats:
        """The picture that is inferred (1, 3, side, side); not among the samples."""
        return (make_images(1, INPUT_SEED, self.side) * np.float32(self.unit)).astype(np.float32)

    def expected(self) -> Floats:
        """What ONNX Runtime gives for it in float32."""
        session = onnxruntime.InferenceSession(str(self.border), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"image": self.picture()})[0], np.float32)


KINDS = {"face": (150, 255.0), "mobilenet": (224, 1.0), "resnet50": (224, 1.0)}


def prepare_model(name: str, cache: Path) -> BenchModel:
    """The model of a name, with its border model, in a folder below `cache`."""
    side, unit = KINDS[name]
    model = BenchModel(name, side, unit, cache / "models" / name)
    model.folder.mkdir(parents=True, exist_ok=True)
    if not model.border.exists():
        script, first = ("make_face_model.py", ()) if name == "face" else ("make_convolutional_model.py", (name,))
        command = [sys.executable, str(ROOT / "scripts" / script), *first, str(model.source)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        bound = bind_shapes(read_model(model.source).model, {"batch": Range(1, 1, 1)}, where="").model
        run_passes(bound, load_passes(list(PORTABLE)))
        ir.save(bound, model.border)
        np.savez(model.folder / "samples.npz", image=model.samples())
    return model


def sqnr_db(expected: Floats, found: Floats) -> float:
    """10·log₁₀(Σ expected² / Σ (expected − found)²), in float64."""
    wanted = expected.astype(np.float64)
    noise = float(np.square(wanted - found.reshape(expected.shape)).sum())
    return float(10 * np.log10(np.square(wanted).sum() / noise)) if noise else float("inf")
