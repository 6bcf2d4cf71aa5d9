"""How accurate a model is: datasets read in the background, tasks with their metrics, and the drop of a candidate."""

from __future__ import annotations

from compiler.artifact.schema import AccuracyDrop, Score, SplitKind
from compiler.evaluate.data import open_calibration, open_dataset, open_evaluation, open_images
from compiler.evaluate.dataset import Dataset
from compiler.evaluate.find import find_task
from compiler.evaluate.run import run_dataset
from compiler.evaluate.saliency import Images
from compiler.evaluate.split import Split, make_split, take_part
from compiler.evaluate.subset import halves, sample_digests
from compiler.evaluate.task import Task
from compiler.fleet.data import Preprocess

__all__ = [
    "AccuracyDrop",
    "Dataset",
    "Images",
    "Preprocess",
    "Score",
    "Split",
    "SplitKind",
    "Task",
    "find_task",
    "halves",
    "make_split",
    "open_calibration",
    "open_dataset",
    "open_evaluation",
    "open_images",
    "run_dataset",
    "sample_digests",
    "take_part",
]
