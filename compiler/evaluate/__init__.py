"""How accurate a model is: datasets read in the background, tasks with their metrics, and the drop of a candidate.

Each name is imported when it is first used: a child process that races two artifacts needs `paired` alone, and no graph
library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.artifact.schema import AccuracyDrop, Score, SplitKind
    from compiler.evaluate.data import TextInputs, open_calibration, open_dataset, open_evaluation, open_images
    from compiler.evaluate.dataset import Dataset
    from compiler.evaluate.find import find_task
    from compiler.evaluate.run import run_dataset
    from compiler.evaluate.saliency import Images
    from compiler.evaluate.split import Split, make_split, take_part
    from compiler.evaluate.subset import halves, sample_digests
    from compiler.evaluate.task import Task
    from compiler.fleet.data import Preprocess

_PLACES = {
    "AccuracyDrop": "compiler.artifact.schema",
    "Dataset": "compiler.evaluate.dataset",
    "Images": "compiler.evaluate.saliency",
    "Preprocess": "compiler.fleet.data",
    "Score": "compiler.artifact.schema",
    "Split": "compiler.evaluate.split",
    "SplitKind": "compiler.artifact.schema",
    "Task": "compiler.evaluate.task",
    "TextInputs": "compiler.evaluate.data",
    "find_task": "compiler.evaluate.find",
    "halves": "compiler.evaluate.subset",
    "make_split": "compiler.evaluate.split",
    "open_calibration": "compiler.evaluate.data",
    "open_dataset": "compiler.evaluate.data",
    "open_evaluation": "compiler.evaluate.data",
    "open_images": "compiler.evaluate.data",
    "run_dataset": "compiler.evaluate.run",
    "sample_digests": "compiler.evaluate.subset",
    "take_part": "compiler.evaluate.split",
}

__all__ = [
    "AccuracyDrop",
    "Dataset",
    "Images",
    "Preprocess",
    "Score",
    "Split",
    "SplitKind",
    "Task",
    "TextInputs",
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


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'compiler.evaluate' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
