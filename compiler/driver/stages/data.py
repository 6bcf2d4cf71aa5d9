"""What a device's accuracy is judged on, and what its ranges are observed on: opened before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.driver.stages.inputs import Prepared
from compiler.errors import CompilerError, UsageError, combine
from compiler.evaluate import Dataset, Images, Task, find_task, open_calibration, open_evaluation, open_images
from compiler.evaluate.gates import EMBEDDING, Constraints
from compiler.fleet import Fleet
from compiler.fleet.data import Calibration, Evaluation
from compiler.model.frontend import describe_inputs
from compiler.plan.jobs import Job

UNASKED = "neither a limit nor an evaluation asks for saliency"


@dataclass(frozen=True)
class AccuracyTest:
    """A task with its data.

    Args:
        task: The metric.
        dataset: What it is computed on.
        warnings: What is odd about the data.
    """

    task: Task
    dataset: Dataset
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """The data of one device.

    Args:
        judge: What its accuracy is judged by; None where no gate asks.
        calibration: What ranges are observed on, and pruning is repaired on; None where the fleet file names none.
        images: What its saliency is compared on, or why that is not done.
    """

    judge: AccuracyTest | None = None
    calibration: Dataset | None = None
    images: Images | str = UNASKED


def open_data(fleet: Fleet, jobs: Sequence[Job], prepared: Mapping[str, Prepared]) -> dict[str, Data]:
    """Opens the data of every device; devices with the same sizes and task share them.

    Raises:
        UsageError: Data do not fit the model or the task; every such problem is named once.
    """
    known: dict[tuple[int, str, bool, bool], Data] = {}
    problems: dict[str, CompilerError] = {}
    found: dict[str, Data] = {}
    for job in jobs:
        ready, constraints = prepared[job.device.name], job.plan.constraints
        calibrates = job.plan.pruning.reads_data or any(rule.scheme is not None for rule in job.plan.candidates)
        key = (id(ready), constraints.task, calibrates, constraints.explains)
        try:
            known[key] = known.get(key) or _open(fleet, ready, constraints, calibrates=calibrates)
            found[job.device.name] = known[key]
        except UsageError as error:
            problems.setdefault(str(error), error)
    if problems:
        raise combine(list(problems.values()))
    return found


def _open(fleet: Fleet, ready: Prepared, constraints: Constraints, *, calibrates: bool) -> Data:
    specs = describe_inputs(ready.model)
    given = fleet.calibration if calibrates else None
    calibration = open_calibration(given, specs, fleet.preprocess) if given else None
    if not (constraints.task or constraints.explains):
        return Data(calibration=calibration)
    evaluation = fleet.evaluation or _embedding(fleet.calibration)
    dataset = open_evaluation(evaluation, specs, fleet.preprocess)
    images = open_images(evaluation, dataset, specs, fleet.preprocess) if constraints.explains else UNASKED
    if not constraints.task:
        return Data(None, calibration, images)
    task = find_task(evaluation)
    return Data(AccuracyTest(task, dataset, (*dataset.warnings, *task.check(dataset))), calibration, images)


def _embedding(calibration: Calibration | None) -> Evaluation:
    """The calibration data as an evaluation that needs no labels; `make_constraints` made sure that they are there."""
    if calibration is None:
        raise UsageError("there are no data to judge accuracy on")
    return Evaluation(task=EMBEDDING, path=calibration.path, samples=calibration.samples)
