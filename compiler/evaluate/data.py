"""What a path of calibration or evaluation data stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.errors import DataError
from compiler.evaluate.arrays import open_arrays
from compiler.evaluate.dataset import Dataset
from compiler.evaluate.folder import open_folder, open_pairs
from compiler.evaluate.function import open_function
from compiler.evaluate.saliency import IMAGES, Images
from compiler.evaluate.saliency_maps import find_picture
from compiler.evaluate.samples import SUFFIXES as ARRAY_SUFFIXES
from compiler.evaluate.text import open_text
from compiler.fleet.data import GENERATION, Calibration, Evaluation, Preprocess, is_function
from compiler.model.decoder import Decoder
from compiler.model.spec import TensorSpec

_NEEDS_LABELS = {"verification": True, "classification": True, "embedding": False}

PAIRS_SUFFIXES = frozenset({".txt", ".csv", ".tsv"})


def open_dataset(
    path: str | Path,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Preprocess | None = None,
    labelled: bool | None = False,
    count: int | None = None,
    images: Path | None = None,
) -> Dataset:
    """Samples for a model.

    Args:
        path: A folder of pictures (in folders named as their labels), a text file of pairs, a .npz or .npy or a folder
            of them, or a path whose last part is `module:function`.
        inputs: What the model takes.
        preprocess: How a picture becomes an input; needed for pictures only.
        labelled: Whether labels are needed; None takes them where there are any.
        count: How many samples (pairs, for a file of pairs) to use; all if None.
        images: The folder that a file of pairs names pictures in; its own if None.

    Raises:
        DataError: There are none, or they do not fit; every problem that shows at once is listed.
    """
    place = Path(path)
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
        arrays = is_folder and any(file.suffix in ARRAY_SUFFIXES for file in place.iterdir())
    except (OSError, ValueError) as error:
        raise DataError(f"it cannot be read: {error}", where=str(place)) from error
    if not is_folder and not is_file and is_function(place.name):
        return open_function(place.name, place.parent, inputs, labelled=labelled, count=count)
    if is_file and place.suffix in PAIRS_SUFFIXES:
        folder = images or place.parent
        return open_pairs(place, inputs, preprocess=preprocess, folder=folder, count=count)
    if is_folder and not arrays:
        return open_folder(place, inputs, preprocess=preprocess, labelled=labelled, count=count)
    return open_arrays(place, inputs, labelled=labelled, count=count)


@dataclass(frozen=True)
class TextInputs:
    """What makes samples of a text: the meaning of a model's inputs, and the tokens of a window."""

    decoder: Decoder
    window: int


def open_calibration(
    calibration: Calibration,
    inputs: Sequence[TensorSpec],
    preprocess: Preprocess | None = None,
    text: TextInputs | None = None,
) -> Dataset:
    """The samples that a fleet file names for calibration, windows for a decoder; raises as `open_dataset`."""
    if text is not None and calibration.path.suffix != ".npz":
        return _open_windows(calibration, inputs, text)
    return open_dataset(calibration.path, inputs, preprocess=preprocess, count=calibration.samples)


def open_evaluation(
    evaluation: Evaluation,
    inputs: Sequence[TensorSpec],
    preprocess: Preprocess | None = None,
    text: TextInputs | None = None,
) -> Dataset:
    """The samples that a fleet file names for evaluation; labelled where its task needs labels.

    Raises:
        DataError: As `open_dataset`; or the task is one of language models, and the fleet file does not say how the
            model is used.
    """
    if evaluation.task == GENERATION:
        if text is None:
            raise DataError(
                "text is cut into windows, and the fleet file does not say how long they are",
                where="evaluation.task",
                remedy="Add `generation: {context: 1024, prefill: 256}`.",
            )
        return _open_windows(evaluation, inputs, text)
    return open_dataset(
        evaluation.path,
        inputs,
        preprocess=preprocess,
        labelled=_NEEDS_LABELS.get(evaluation.task),
        count=evaluation.samples,
        images=evaluation.images,
    )


def _open_windows(source: Calibration | Evaluation, inputs: Sequence[TensorSpec], text: TextInputs) -> Dataset:
    return open_text(
        source.path, inputs, text.decoder, window=text.window, tokenizer=source.tokenizer, count=source.samples
    )


def open_images(
    evaluation: Evaluation, dataset: Dataset, inputs: Sequence[TensorSpec], preprocess: Preprocess | None = None
) -> Images | str:
    """A few of an evaluation's samples, to explain what a model makes of their pictures; or why none can be explained.

    Args:
        evaluation: The evaluation; twice as many samples are taken as are explained, so that people have pairs.
        dataset: All of its samples.
        inputs: What the model takes.
        preprocess: How a picture becomes an input.
    """
    picture = find_picture(inputs)
    if isinstance(picture, str):
        return picture
    if dataset.whole:
        return "its samples are complete inputs, and no axis counts pictures"
    there = len(dataset.labels) if dataset.labels is not None and dataset.labels.ndim == 2 else dataset.count
    few = open_evaluation(replace(evaluation, samples=min(2 * IMAGES, there)), inputs, preprocess)
    return Images(few, picture, evaluation.task, evaluation.output, evaluation.pictures)
