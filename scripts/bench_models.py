"""The models that builds are measured with beside others, and their inputs; made or fetched where they are absent."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from bench_record import ROOT
from make_convolutional_model import make_images
from package_networks import fetch_networks

from compiler.fleet import Range
from compiler.model.frontend import bind_shapes, read_model
from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.run import run_passes

SAMPLES = 4
SAMPLE_SEED, INPUT_SEED = 7, 99
TOKENS = 64
"""Length of the sequence that the encoder is given."""

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class BenchModel:
    """One model of one input, and where its files are.

    Args:
        name: Short name.
        folder: Where its files are.
        draw: Count, seed → that many items.
        input: Name of its input.
        batch: Name of the dimension that counts items; empty where the model takes one and no more.
        sizes: Name of each other free dimension → its size.
        unit: What a white pixel is in its input.
        batches: Items at a time that throughput is measured with: a peer's file for one can be reshaped to them.
    """

    name: str
    folder: Path
    draw: Callable[[int, int], Array]
    input: str = "image"
    batch: str = "batch"
    sizes: Mapping[str, int] = field(default_factory=dict)
    unit: float = 1.0
    batches: tuple[int, ...] = (1, 8)

    @property
    def source(self) -> Path:
        """The model as a user has it."""
        return self.folder / "model.onnx"

    @property
    def border(self) -> Path:
        """After the portable half, for one item: what the peers are given too."""
        return self.folder / "border.onnx"

    @property
    def digest(self) -> str:
        """SHA-256 of the border model, in hex."""
        return hashlib.sha256(self.border.read_bytes()).hexdigest()

    def dims(self, items: int = 1) -> dict[str, int]:
        """Size of every free dimension for a number of items."""
        return {**self.sizes, **({self.batch: items} if self.batch else {})}

    def samples(self) -> Array:
        """Items to calibrate with."""
        return self.draw(SAMPLES, SAMPLE_SEED)

    def item(self) -> Array:
        """The item that is inferred (1, …); not among the samples."""
        return self.draw(1, INPUT_SEED)

    def expected(self) -> Array:
        """What ONNX Runtime gives for it in float32."""
        session = onnxruntime.InferenceSession(str(self.border), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {self.input: self.item()})[0])


def picture_model(name: str, folder: Path, side: int, unit: float) -> BenchModel:
    """A model of square pictures in three colours, drawn as `make_images` draws them."""

    def draw(count: int, seed: int) -> Array:
        return (make_images(count, seed, side) * np.float32(unit)).astype(np.float32)

    return BenchModel(name, folder, draw, unit=unit)


def prepare_model(name: str, cache: Path) -> BenchModel:
    """The model of a name of `KINDS`, with its border model and samples, in a folder below `cache`."""
    describe, make = KINDS[name]
    model = describe(name, cache / "models" / name)
    model.folder.mkdir(parents=True, exist_ok=True)
    if not model.border.exists():
        make(model)
        ranges = {dim: Range(size, size, size) for dim, size in model.dims().items()}
        bound = bind_shapes(read_model(model.source).model, ranges, where="").model
        run_passes(bound, load_passes(list(PORTABLE)))
        ir.save(bound, model.border)
        arrays: dict[str, Any] = {model.input: model.samples()}
        np.savez(model.folder / "samples.npz", **arrays)
    return model


def sqnr_db(expected: Array, found: Array) -> float:
    """10·log₁₀(Σ expected² / Σ (expected − found)²), in float64."""
    wanted = expected.astype(np.float64)
    noise = float(np.square(wanted - found.reshape(expected.shape)).sum())
    return float(10 * np.log10(np.square(wanted).sum() / noise)) if noise else float("inf")


def _face(name: str, folder: Path) -> BenchModel:
    return picture_model(name, folder, 150, 255.0)


def _classifier(name: str, folder: Path) -> BenchModel:
    return picture_model(name, folder, 224, 1.0)


def _lines_of_text(name: str, folder: Path) -> BenchModel:
    """PP-OCRv4's recognition of one line: pixels from −1 to 1."""

    def draw(count: int, seed: int) -> Array:
        return (make_images(count, seed, 320)[:, :, :48] * 2 - 1).astype(np.float32)

    width, items = "p2o.DynamicDimension.1", "p2o.DynamicDimension.0"
    return BenchModel(name, folder, draw, input="x", batch=items, sizes={"x.2": 48, width: 320}, batches=(1,))


def _lines_by_lstm(name: str, folder: Path) -> BenchModel:
    """Ddddocr's network for one gray line: convolutions and an LSTM layer in both directions."""

    def draw(count: int, seed: int) -> Array:
        return make_images(count, seed, 192)[:, :1, :64].astype(np.float32)

    return BenchModel(name, folder, draw, input="input1", batch="", sizes={"image_width": 192}, batches=(1,))


def _token_ids(name: str, folder: Path) -> BenchModel:
    """An encoder of 6 layers of width 384."""

    def draw(count: int, seed: int) -> Array:
        return np.random.default_rng(seed).integers(0, 30_000, (count, TOKENS))

    return BenchModel(name, folder, draw, input="tokens", sizes={"sequence": TOKENS})


def _by_script(*command: str) -> Callable[[BenchModel], None]:
    """Runs a script of this folder with the model's path."""

    def make(model: BenchModel) -> None:
        script, *rest = command
        program = [sys.executable, str(ROOT / "scripts" / script), *rest, str(model.source)]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)

    return make


def _of_package(package: str, file: str) -> Callable[[BenchModel], None]:
    """Fetches a network that a Python package has inside."""

    def make(model: BenchModel) -> None:
        place = model.folder / "package"
        shutil.rmtree(place, ignore_errors=True)
        fetch_networks(package, place)
        shutil.copy(next(place.rglob(file)), model.source)

    return make


KINDS: dict[str, tuple[Callable[[str, Path], BenchModel], Callable[[BenchModel], None]]] = {
    "face": (_face, _by_script("make_face_model.py")),
    "mobilenet": (_classifier, _by_script("make_convolutional_model.py", "mobilenet")),
    "resnet50": (_classifier, _by_script("make_convolutional_model.py", "resnet50")),
    "ocr": (_lines_of_text, _of_package("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx")),
    "ocr-lstm": (_lines_by_lstm, _of_package("ddddocr==1.6.1", "common.onnx")),
    "encoder": (_token_ids, _by_script("make_transformer_model.py", "--size-mb", "90", "--width", "384")),
}
"""Name → what its input is like, and how its file is made."""
