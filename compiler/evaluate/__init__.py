"""How accurate a model is: datasets read in the background, tasks with their metrics, and the drop of a candidate."""

from __future__ import annotations

from compiler.artifact.schema import AccuracyDrop, Score
from compiler.evaluate.data import open_calibration, open_dataset, open_evaluation, open_images
from compiler.evaluate.dataset import Dataset
from compiler.evaluate.find import find_task
from compiler.evaluate.run import run_dataset
from compiler.evaluate.saliency import Images
from compiler.evaluate.task import Task
from compiler.fleet.data import Preprocess

__all__ = [
    "AccuracyDrop",
    "Dataset",
    "Images",
    "Preprocess",
    "Score",
    "Task",
    "find_task",
    "open_calibration",
    "open_dataset",
    "open_evaluation",
    "open_images",
    "run_dataset",
]
