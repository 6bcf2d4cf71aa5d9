"""What a device's accuracy is judged on, and what its ranges are observed on: opened before anything is built."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from compiler.driver.stages.inputs import BuildStart
from compiler.errors import CompilerError, DataError, InternalError, UsageError, combine
from compiler.evaluate import (
    Dataset,
    Images,
    Split,
    SplitKind,
    Task,
    TextInputs,
    find_task,
    halves,
    make_split,
    open_calibration,
    open_evaluation,
    open_images,
    sample_digests,
)
from compiler.evaluate.answers import Prompts, open_prompts
from compiler.evaluate.gates import EMBEDDING, Constraints
from compiler.evaluate.split import Groups
from compiler.fleet import Fleet
from compiler.fleet.data import Calibration, Evaluation, Generation
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.spec import TensorSpec
from compiler.plan.jobs import Job

UNASKED = "neither a limit nor an evaluation asks for saliency"


log = logging.getLogger("fleetc.build")

LEAST_SPLIT = 32
"""Distinct calibration samples that are enough to fit on one half and to judge on the other."""

MOST_COMPARED = 20_000
"""Samples of calibration and evaluation together that are read once more to find those in both."""


@dataclass(frozen=True)
class AccuracyTest:
    """A task with its data.

    Args:
        task: The metric.
        dataset: What it is computed on.
        warnings: What is odd about the data.
        split: Which part of the data chooses among trials and which certifies; None where no limit judges.
        part: Groups of the data whose outputs are judged; None means all.
    """

    task: Task
    dataset: Dataset
    warnings: tuple[str, ...]
    split: Split | None = None
    part: Groups | None = None

    @property
    def certifying(self) -> AccuracyTest:
        """The same task on the half that was held out."""
        if self.split is None or self.split.kind != SplitKind.HELD_OUT:
            raise InternalError("no half of the data was held out")
        return replace(self, part=self.split.folds[0])


@dataclass(frozen=True)
class Data:
    """The data of one device.

    Args:
        judge: What its accuracy is judged by; None where no gate asks.
        other: A text of another domain that chooses nothing, and that what was chosen is judged by, too.
        calibration: What ranges are observed on, and pruning is repaired on; None where the fleet file names none.
        images: What its saliency is compared on, or why that is not done.
        unjudged: Why its accuracy is not judged although a limit asks.
        prompts: What a language model is shown to answer; None where the fleet file names none.
    """

    judge: AccuracyTest | None = None
    other: AccuracyTest | None = None
    calibration: Dataset | None = None
    images: Images | str = UNASKED
    unjudged: str = ""
    prompts: Prompts | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes a judgement by these data doubtful, or keeps them from one."""
        unjudged = (f"accuracy is not judged: {self.unjudged}",) if self.unjudged else ()
        return (*(self.judge.warnings if self.judge else ()), *unjudged)


def with_inputs(data: Data, specs: tuple[TensorSpec, ...]) -> Data:
    """The same samples for a model whose inputs have other sizes: a batch that is fixed, where it was open."""
    judge, other, images = data.judge, data.other, data.images
    return replace(
        data,
        judge=replace(judge, dataset=replace(judge.dataset, inputs=specs)) if judge else None,
        other=replace(other, dataset=replace(other.dataset, inputs=specs)) if other else None,
        calibration=replace(data.calibration, inputs=specs) if data.calibration else None,
        images=images if isinstance(images, str) else replace(images, dataset=replace(images.dataset, inputs=specs)),
    )


def open_data(fleet: Fleet, jobs: Sequence[Job], prepared: Mapping[str, BuildStart]) -> dict[str, Data]:
    """Opens the data of every device; devices with the same sizes and task share them.

    Raises:
        UsageError: Data do not fit the model or the task; every such problem is named once.
    """
    known: dict[tuple[object, ...], Data] = {}
    problems: dict[str, CompilerError] = {}
    by_device: dict[str, Data] = {}
    for job in jobs:
        ready, constraints = prepared[job.device.name], job.plan.constraints
        rules = [rule for own in job.by_target for rule in own.plan.candidates]
        calibrates = job.plan.pruning.reads_data or any(rule.scheme is not None for rule in rules)
        trains, limit = job.plan.pruning.recovers, constraints.limits.accuracy_drop_pct
        generation = job.device.generation
        key = (id(ready), constraints.task, calibrates, constraints.explains, trains, limit, generation)
        try:
            text = TextInputs(find_decoder(ready.model), generation.prefill) if generation else None
            opening = partial(_open, fleet, ready, constraints, calibrates=calibrates, trains=trains, text=text)
            known[key] = known.get(key) or replace(opening(), prompts=_prompts(fleet.evaluation, text, generation))
            by_device[job.device.name] = known[key]
        except UsageError as error:
            problems.setdefault(str(error), error)
    for warning in dict.fromkeys(warning for data in by_device.values() for warning in data.warnings):
        log.warning("%s", warning)
    if problems:
        raise combine(list(problems.values()))
    return by_device


def _open(
    fleet: Fleet,
    ready: BuildStart,
    constraints: Constraints,
    *,
    calibrates: bool,
    trains: bool,
    text: TextInputs | None = None,
) -> Data:
    specs = describe_inputs(ready.any_batch.model if ready.any_batch else ready.model)
    source = fleet.calibration if calibrates else None
    calibration = open_calibration(source, specs, fleet.preprocess, text) if source else None
    if not (constraints.task or constraints.explains):
        return Data(calibration=calibration)
    evaluation = fleet.evaluation or _embedding(fleet.calibration)
    dataset = open_evaluation(evaluation, specs, fleet.preprocess, text)
    images = open_images(evaluation, dataset, specs, fleet.preprocess) if constraints.explains else UNASKED
    if not constraints.task:
        return Data(calibration=calibration, images=images)
    task = find_task(evaluation)
    shared: tuple[str, ...] = ()
    if calibration is not None and fleet.evaluation is None:
        parts = _divided(dataset)
        if isinstance(parts, str):
            return Data(calibration=calibration, images=images, unjudged=parts)
        calibration, dataset = parts
    elif calibration is not None:
        shared = _shared(calibration, dataset)
    warnings = (*dataset.warnings, *shared, *task.check(dataset))
    other = _other(task, evaluation, specs, text) if evaluation.other is not None else None
    split = _split(task, dataset, constraints, trains or other is not None)
    if other is not None and (split[0] is None or split[0].kind != SplitKind.HELD_OUT):
        raise DataError(
            "one window of text cannot both choose and judge",
            where="evaluation.samples",
            remedy="Give `samples` of 2 or more, and a limit: `limits: {perplexity_increase_pct: …}`.",
        )
    return Data(AccuracyTest(task, dataset, warnings, *split), other, calibration, images)


def _other(
    task: Task, evaluation: Evaluation, specs: tuple[TensorSpec, ...], text: TextInputs | None
) -> AccuracyTest | None:
    """The same task on windows of the text of another domain."""
    if evaluation.other is None:
        return None
    dataset = open_evaluation(replace(evaluation, path=evaluation.other), specs, None, text)
    return AccuracyTest(task, dataset, task.check(dataset))


def _prompts(evaluation: Evaluation | None, text: TextInputs | None, generation: Generation | None) -> Prompts | None:
    if evaluation is None or evaluation.prompts is None or text is None or generation is None:
        return None
    return open_prompts(evaluation.prompts, evaluation.tokenizer, text.decoder, generation)


def _split(
    task: Task, dataset: Dataset, constraints: Constraints, holds_out: bool
) -> tuple[Split | None, Groups | None]:
    """How the data are divided, and the part that chooses; nothing where no limit chooses."""
    limit = constraints.limits.accuracy_drop_pct
    if limit is None:
        return None, None
    split = make_split(dataset.labels, dataset.count, by_person=task.by_person, limit_pct=limit, holds_out=holds_out)
    return split, split.choosing if split.kind == SplitKind.HELD_OUT else None


def _divided(calibration: Dataset) -> tuple[Dataset, Dataset] | str:
    """The half that ranges are observed on, and the half that judges; or why there are no two."""
    advice = "add an evaluation, or more calibration samples"
    if calibration.whole:
        return f"the calibration samples are complete inputs and cannot be divided into fitting and judging: {advice}"
    digests = sample_digests(calibration)
    distinct = len(set(digests))
    if distinct < LEAST_SPLIT:
        return (
            f"the file has no evaluation, and {distinct} distinct calibration samples are fewer than {LEAST_SPLIT}: "
            f"none can be spared to judge what the others fit: {advice}"
        )
    return halves(calibration, digests)


def _shared(calibration: Dataset, evaluation: Dataset) -> tuple[str, ...]:
    """A warning where samples are in both sets: accuracy on what was fitted is too good."""
    if calibration.count + evaluation.count > MOST_COMPARED:
        return (f"whether calibration and evaluation share samples was not checked: over {MOST_COMPARED} to read",)
    fitted = set(sample_digests(calibration))
    count = sum(digest in fitted for digest in sample_digests(evaluation))
    if not count:
        return ()
    return (
        f"{count} of {evaluation.count} evaluation samples are calibration samples too: accuracy on them is too good",
    )


def _embedding(calibration: Calibration | None) -> Evaluation:
    """The calibration data as an evaluation that needs no labels; `make_constraints` made sure that they are there."""
    if calibration is None:
        raise UsageError("there are no data to judge accuracy on")
    return Evaluation(task=EMBEDDING, path=calibration.path, samples=calibration.samples)
