"""The networks that bench_pruning.py prunes: the model, data to prune with, and other data to judge by."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from bench_record import Figures
from make_face_model import main as make_face_model
from make_face_samples import calibration_faces, load_faces, real_pairs, synthetic_pairs

from compiler.compress.prune.repair import in_batches
from compiler.compress.prune.tap import watch
from compiler.evaluate import find_task
from compiler.fleet import Range
from compiler.fleet.data import Evaluation
from compiler.model.frontend import import_model
from compiler.model.numerics import Arrays, compare
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.run import run_passes

FAR = 1e-3
BATCH = 10
LINES = 200
"""Lines of text that are drawn, half of them to prune with."""
CLASSIFIER = "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """One network.

    Args:
        name: Short name.
        model: Its border model.
        own: What it is ordered, repaired and recovered with, (N, …).
        judged: What it is judged by; nothing of it is in `own`.
        labels: Who is on each judged sample; None where only fidelity is judged.
        protocol: Where both are from, in words.
        own_labels: Who is on each of `own`; None where that is not known.
    """

    name: str
    model: ir.Model
    own: Floats
    judged: Floats
    labels: npt.NDArray[np.str_] | None
    protocol: str
    own_labels: npt.NDArray[np.str_] | None = None

    @property
    def input(self) -> str:
        """Name of its input."""
        return str(self.model.graph.inputs[0].name)

    @property
    def output(self) -> str:
        """Name of its output."""
        return str(self.model.graph.outputs[0].name)

    @property
    def familiar(self) -> Subject | None:
        """The same network judged by the people it was pruned with; None where nobody knows who they are."""
        return None if self.own_labels is None else replace(self, judged=self.own, labels=self.own_labels)

    def batches(self) -> Iterator[Arrays]:
        """The data to prune with."""
        return in_batches({self.input: self.own}, BATCH)

    def outputs(self, model: ir.Model) -> Floats:
        """What a model gives on the judged data."""
        found = watch(model, [self.output], in_batches({self.input: self.judged}, BATCH))
        return np.concatenate([np.asarray(one, np.float32) for (one,) in found])

    def judge(self, found: Floats) -> Figures:
        """How good outputs on the judged data are."""
        wanted = self.outputs(self.model)
        stats = compare(wanted, found)
        figures: Figures = {"sqnr_db": round(stats.sqnr_db, 2), "cosine": round(stats.cosine, 5)}
        if self.labels is None:
            same = wanted.argmax(axis=1) == found.argmax(axis=1)
            return figures | {"agreement_pct": round(100 * float(same.mean()), 2)}
        task = find_task(Evaluation(task="verification", path=Path(), far=(FAR,)))
        drop = task.drop({self.output: wanted}, {self.output: found}, self.labels, limit_pct=2.0)
        score = task.score({self.output: found}, self.labels)
        return figures | {
            "tar_pct": round(drop.candidate.value_pct, 2),
            "tar_drop_points": round(drop.drop_pct, 2),
            "tar_drop_interval": [None if end is None else round(end, 2) for end in (drop.low_pct, drop.high_pct)],
            "rank1_pct": round(score.details["rank-1"], 2),
        }


def face(folder: Path | None) -> Subject:
    """The face network; with photographs every other person is judged, without them synthetic pairs are."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "face.onnx"
        if make_face_model([str(path)]):
            raise SystemExit("the face model could not be made")
        model = border_of(path, {"batch": Range(1, 1, 32)})
    if folder is None:
        own, judged = calibration_faces(load_faces(), every=3), synthetic_pairs(load_faces(), but_every=3)
        return Subject("face", model, own.images, judged.images, judged.labels, f"{own.origin}; {judged.origin}")
    faces = real_pairs(folder)
    labels = np.asarray(faces.labels)
    is_own = np.isin(labels, np.unique(labels)[::2])
    said = f"{faces.origin}: every other person prunes, the others judge; nobody does both"
    return Subject("face", model, faces.images[is_own], faces.images[~is_own], labels[~is_own], said, labels[is_own])


def text_direction() -> Subject | None:
    """PP-OCR's classifier of upside-down lines, out of the package rapidocr; None where that is not installed."""
    spec = find_spec("rapidocr")
    path = Path(spec.origin).parent / CLASSIFIER if spec and spec.origin else None
    if path is None or not path.is_file():
        return None
    model = border_of(path, {"x.0": Range(1, 1, 32), "x.2": Range(48, 48, 48), "x.3": Range(192, 192, 192)})
    for node in model.graph:
        if node.op_type == "Reshape" and (shape := node.inputs[0].shape if node.inputs[0] else None) is not None:
            node.outputs[0].shape = ir.Shape(
                [shape[0], prod([size for size in shape[1:] if isinstance(size, int)])]
            )  # computed as it runs
    INFER_SHAPES(model)
    lines = draw_lines(LINES)
    said = f"{LINES} lines of random text in two typefaces, half of them upside down; every other one prunes"
    return Subject("text direction", model, lines[::2], lines[1::2], None, said)


SUBJECTS: dict[str, Callable[[Path | None], Subject | None]] = {"face": face, "text": lambda folder: text_direction()}


def border_of(path: Path, ranges: dict[str, Range]) -> ir.Model:
    """The border model of a file."""
    model = import_model(path, ranges=ranges)
    run_passes(model, load_passes(PORTABLE))
    return model


def draw_lines(count: int) -> Floats:
    """Lines of text (N, 3, 48, 192) from -1 to 1, every second one upside down."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [ImageFont.truetype(str(fonts / name), 30) for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf")]
    random = np.random.default_rng(7)
    letters = np.array([*string.ascii_letters, *string.digits, " "])
    lines = []
    for index in range(count):
        ink, paper = sorted(random.integers(0, 256, 2).tolist())
        picture = Image.new("L", (192, 48), paper)
        text = "".join(random.choice(letters, 11))
        ImageDraw.Draw(picture).text((4, 5), text, font=faces[index // 2 % 2], fill=ink)
        pixels = np.asarray(picture.rotate(180 * (index // 2 % 2 ^ index // 4 % 2)), np.float32)
        lines.append(np.repeat((pixels / 127.5 - 1)[None], 3, axis=0))
    return np.stack(lines)
