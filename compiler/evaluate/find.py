"""Tasks by the names that a fleet file gives them."""

from __future__ import annotations

from functools import partial

from compiler.errors import DataError
from compiler.evaluate import classification, custom, embedding, generation, verification
from compiler.evaluate.dataset import Dataset
from compiler.evaluate.function import check_function
from compiler.evaluate.task import Task
from compiler.fleet.data import GENERATION, TASKS, Evaluation, is_function


def find_task(evaluation: Evaluation) -> Task:
    """The task that a fleet file asks for.

    Raises:
        DataError: A function of the user's own, or the file of classes, cannot be read.
    """
    name, output, rule = evaluation.task, evaluation.output, evaluation.rule
    if name == "verification":
        judge = partial(verification.measure, fars=evaluation.far, output=output)
        metric = verification.metric_name(evaluation.far[0])
        threshold = partial(verification.choose_threshold, far=evaluation.far[0], output=output)
        return Task(name, metric, judge, partial(verification.check, fars=evaluation.far), rule, threshold)
    if name == "classification":
        classes = classification.read_classes(evaluation.classes)
        judge = partial(classification.measure, output=output, classes=classes)
        return Task(name, "top-1", judge, partial(classification.check, classes=classes), rule)
    if name == "embedding":
        return Task(name, embedding.METRIC, partial(embedding.measure, output=output), _nothing_odd, rule)
    if name == GENERATION:
        return Task(name, generation.METRIC, generation.measure, generation.check, rule)
    if not is_function(name):
        remedy = f"Known: {', '.join(TASKS)}, or module:function."
        raise DataError(f"there is no task '{name}'", where="evaluation.task", remedy=remedy)
    folder = evaluation.path.parent
    check_function(name, folder)
    return Task(name, name.partition(":")[2], partial(custom.measure, spec=name, folder=folder), _nothing_odd, rule)


def _nothing_odd(dataset: Dataset) -> tuple[str, ...]:
    return ()
