"""Whether a build looks at the same parts of pictures as the float model: maps of both on the same ones, compared.

score     the class that the float model ranks first; or, for embeddings, the cosine to a reference embedding that
          the float model made of another picture of the same person, or of the same picture
map       what the score loses with each window covered (saliency_maps.py)
compare   rank correlation (Spearman) of the two maps, overlap of their most important windows, and the difference
          of the areas under the deletion and the insertion curves, each model by its own map
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from compiler.errors import DataError
from compiler.evaluate.dataset import Dataset, Step
from compiler.evaluate.saliency_maps import (
    STEPS,
    Floats,
    Grid,
    Mask,
    PictureInput,
    cut,
    order_masks,
    window_masks,
)
from compiler.evaluate.task import pick_output, refuse_not_finite
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec

IMAGES = 6
"""Pictures that are explained: each costs a hundred inferences."""

TOP = 0.1
"""Part of the windows that count as a map's most important."""

TIE = 1e-3
"""Of a map's range: windows that differ by less are of equal rank, or noise would order the background."""

FLOOR = 1e-6
"""Of the score: a map whose range is less says nothing; it is the rounding of float32."""

MAX_OUTPUT_ELEMENTS = 1 << 18
"""Numbers in the outputs of one picture: those of all that are made of the pictures are in memory at once."""

Run: TypeAlias = Callable[[Dataset], Arrays]
"""Runs a model on every sample: output name → (samples, …)."""


@dataclass(frozen=True)
class Images:
    """A few samples with a picture in each, and what they are explained by.

    Args:
        dataset: The samples, references among them.
        picture: The input that takes pictures.
        task: Of the evaluation: `classification` explains the class; everything else the outputs' direction.
        output: The output that is judged; None for the only one of a classifier, and all of them otherwise.
        may_show: Whether pictures of the data may be kept beside what is computed of them.
        most: Pictures that are explained, at most.
    """

    dataset: Dataset
    picture: PictureInput
    task: str
    output: str | None = None
    may_show: bool = True
    most: int = IMAGES


@dataclass(frozen=True)
class Question:
    """What is explained: the samples, and the score whose changes make their maps.

    Args:
        samples: One per picture, input name → (1, …).
        inputs: What they are for.
        picture: The input that takes pictures.
        kind: `class` or `cosine`.
        goals: Output → the float model's own class (pictures,), or its reference (pictures, features).
        words: What the score is, for a person.
    """

    samples: tuple[Arrays, ...]
    inputs: tuple[TensorSpec, ...]
    picture: PictureInput
    kind: Literal["class", "cosine"]
    goals: Arrays
    words: str

    @property
    def pictures(self) -> tuple[Array, ...]:
        """The pictures alone, with a batch of 1."""
        return tuple(sample[self.picture.name] for sample in self.samples)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """How each picture is cut."""
        return tuple(cut(*self.picture.sides(picture)) for picture in self.pictures)


@dataclass(frozen=True)
class Explanation:
    """One model's answer, per picture.

    Args:
        maps: What the score loses with each window covered (rows, columns).
        intact: The score of the whole picture (pictures,).
        blank: The score of nothing but its mean colour (pictures,).
        deletion: The score as patches are covered (pictures, STEPS − 1).
        insertion: The score as patches are uncovered (pictures, STEPS − 1).
    """

    maps: tuple[Floats, ...]
    intact: Floats
    blank: Floats
    deletion: Floats
    insertion: Floats


@dataclass(frozen=True)
class Similarity:
    """How alike two explanations of one picture are; None where that is not defined.

    Args:
        correlation: Spearman's rank correlation of the maps, −1 to 1.
        overlap: Part of the most important windows that both have, 0 to 1.
        insertion: Area under the candidate's insertion curve less that under the float model's, in parts of what the
            float model's score loses from the whole picture to none of it; below 0 is worse.
        deletion: The same of the deletion curve; above 0 is worse.
        why: Why something is not defined, or what its reader should know.
    """

    correlation: float | None
    overlap: float | None
    insertion: float | None = None
    deletion: float | None = None
    why: str = ""


def too_large(outputs: Arrays) -> str:
    """Why a model with such outputs is not explained; empty where it can be."""
    size = sum(array[:1].size for array in outputs.values())
    if size <= MAX_OUTPUT_ELEMENTS:
        return ""
    return f"the outputs of one picture have {size} numbers, more than {MAX_OUTPUT_ELEMENTS}"


def ask(outputs: Arrays, images: Images) -> Question:
    """Chooses pictures, and what of the float model's outputs the maps will explain.

    Args:
        outputs: The float model's on the samples.
        images: The samples.

    Raises:
        DataError: The outputs are of another kind than the task.
        InvalidModel: The outputs hold NaN or infinity.
    """
    refuse_not_finite(outputs)
    samples = tuple(_singles(images.dataset))
    labels = images.dataset.labels if images.task == "verification" else None
    places, partners = choose_pictures(labels, len(samples), most=images.most)
    kind, goals = _goals(outputs, images, places, partners)
    seen = "the picture itself" if places == partners else "another picture of the person"
    cosine = f"the cosine to the float model's output for {seen}"
    words = "the score of the float model's first class" if kind == "class" else cosine
    chosen = tuple(samples[place] for place in places)
    return Question(chosen, images.dataset.inputs, images.picture, kind, goals, words)


def explain(run: Run, question: Question) -> Explanation:
    """The maps of one model, and how well they order the patches for it.

    Args:
        run: Runs the model; it is called twice, with about 80 and about 20 samples for each picture.
        question: The pictures and the score.
    """
    grids = question.grids
    scores = _scores(run, question, [list(window_masks(grid)) for grid in grids])
    with np.errstate(invalid="ignore"):
        maps = tuple((values[0] - values[2:]).reshape(grid.shape) for values, grid in zip(scores, grids, strict=True))
    orders = [
        list(order_masks(grid, np.nan_to_num(values, posinf=0.0, neginf=0.0)))
        for values, grid in zip(maps, grids, strict=True)
    ]
    curves = np.array(_scores(run, question, orders))
    intact, blank = np.array([values[:2] for values in scores]).T
    return Explanation(maps, intact, blank, curves[:, : STEPS - 1], curves[:, STEPS - 1 :])


def compare_explanations(reference: Explanation, candidate: Explanation) -> tuple[Similarity, ...]:
    """How alike the maps of a candidate are to those of the float model, picture by picture."""
    return tuple(_similarity(reference, candidate, place) for place in range(len(reference.maps)))


def rank_correlation(left: Floats, right: Floats) -> float:
    """Spearman's: the correlation of ranks, equal values sharing the mean of theirs; neither may be constant."""
    return float(np.corrcoef(_ranks(left.ravel()), _ranks(right.ravel()))[0, 1])


def top_overlap(left: Floats, right: Floats) -> float:
    """Part of the most important `TOP` of the windows that both maps name."""
    count = max(1, round(TOP * left.size))
    first, second = (set(np.argsort(-values, axis=None, kind="stable")[:count].tolist()) for values in (left, right))
    return len(first & second) / count


def choose_pictures(labels: Array | None, count: int, *, most: int = IMAGES) -> tuple[list[int], list[int]]:
    """Samples to explain, and for each the one that its score refers to, itself where it has no partner.

    Args:
        labels: Of a verification's samples: the person of each, or pairs (M, 5); None refers each to itself.
        count: How many samples there are.
        most: How many are explained, at most.
    """
    if labels is None:
        spread: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
        return spread, spread
    partners = dict(_partners(labels, count))
    people = {place: place for place in range(count)} if labels.ndim == 2 else _firsts(labels)
    order = sorted(range(count), key=lambda place: (place not in partners, people[place] != place, place))
    places = sorted(order[:most])
    return places, [partners.get(place, place) for place in places]


def _goals(
    outputs: Arrays, images: Images, places: list[int], partners: list[int]
) -> tuple[Literal["class", "cosine"], Arrays]:
    if images.task == "classification":
        name = images.output or next(iter(outputs))
        return "class", {name: pick_output(outputs, images.output).argmax(axis=1)[places]}
    names = [images.output] if images.output else list(outputs)
    if missing := [name for name in names if name not in outputs]:
        raise DataError(f"the model has no output '{missing[0]}'; it has {', '.join(outputs)}", where="saliency")
    return "cosine", {name: outputs[name].reshape(len(outputs[name]), -1)[partners] for name in names}


def _firsts(labels: Array) -> dict[int, int]:
    """Sample → the first one of the same label."""
    first: dict[object, int] = {}
    return {place: first.setdefault(label, place) for place, label in enumerate(labels.tolist())}


def _partners(labels: Array, count: int) -> Iterator[tuple[int, int]]:
    if labels.ndim == 2:
        yield from {int(row[0]): int(row[1]) for row in labels[::-1] if row[2] == 1}.items()
        return
    for place in range(count):
        same = np.flatnonzero(labels == labels[place])
        if len(same) > 1:
            yield place, int(same[(np.searchsorted(same, place) + 1) % len(same)])


def _singles(dataset: Dataset) -> Iterator[Arrays]:
    for batch in dataset.batches(1):
        yield {name: np.array(array) for name, array in batch.items()}


def _scores(run: Run, question: Question, masks: Sequence[Sequence[Mask]]) -> list[Floats]:
    """The scores of every picture under its own masks, in one run of the model."""
    owner = np.repeat(np.arange(len(masks)), [len(sequence) for sequence in masks])
    outputs = run(_masked(question, masks))
    score = _class_score if question.kind == "class" else _cosine_score
    means = np.mean([score(outputs[name], goal[owner]) for name, goal in question.goals.items()], axis=0)
    return np.split(means, np.cumsum([len(sequence) for sequence in masks])[:-1])


def _masked(question: Question, masks: Sequence[Sequence[Mask]]) -> Dataset:
    """Samples whose pictures are covered by masks, made as they are read."""
    steps = partial(_steps, question, masks)
    return Dataset(count=sum(map(len, masks)), origin="saliency", digest="", inputs=question.inputs, steps=steps)


def _steps(question: Question, masks: Sequence[Sequence[Mask]]) -> Iterator[Step]:
    for sample, own in zip(question.samples, masks, strict=True):
        for mask in own:
            yield partial(_cover, question.picture, sample, mask)


def _cover(picture: PictureInput, sample: Arrays, mask: Mask) -> Arrays:
    return {**sample, picture.name: picture.covered(sample[picture.name], mask)}


def _class_score(outputs: Array, classes: Array) -> Floats:
    rows = outputs.reshape(len(outputs), -1)
    scores: Floats = rows[np.arange(len(rows)), classes.astype(np.int64)].astype(np.float64)
    return scores


def _cosine_score(outputs: Array, references: Array) -> Floats:
    """The cosine of each row to its reference; 0 where one of them is zero."""
    got, want = (array.reshape(len(array), -1).astype(np.float64) for array in (outputs, references))
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
        products: Floats = np.einsum("ij,ij->i", got, want)
        cosines: Floats = np.divide(products, norms, out=np.zeros_like(norms), where=norms != 0)
    return cosines


def _similarity(reference: Explanation, candidate: Explanation, place: int) -> Similarity:
    want, got = reference.maps[place], candidate.maps[place]
    scale = max(abs(reference.intact[place]), abs(reference.blank[place]))
    if not np.isfinite(want).all():
        return Similarity(None, None, why="the float model's score is NaN or infinite where parts are covered")
    if is_flat(want, scale):
        return Similarity(None, None, why="the float model's score is the same whatever is covered")
    if not np.isfinite(got).all():
        return Similarity(0.0, 0.0, why="the candidate's score is NaN or infinite: counted as no correlation")
    if is_flat(got, scale):
        return Similarity(0.0, 0.0, why="the candidate's score is the same whatever is covered: no correlation")
    insertion, deletion = (_area_change(reference, candidate, place, curve) for curve in ("insertion", "deletion"))
    return Similarity(rank_correlation(_tied(want), _tied(got)), top_overlap(want, got), insertion, deletion)


def is_flat(saliency_map: Floats, score: float) -> bool:
    """Whether a map says nothing: every window has the same value, but for the rounding of float32.

    Args:
        saliency_map: The map.
        score: The largest score that it was made of.
    """
    return bool(np.ptp(saliency_map) <= FLOOR * max(score, float(np.finfo(np.float32).tiny)))


def _tied(saliency_map: Floats) -> Floats:
    """The map in steps of `TIE` of its range."""
    stepped: Floats = np.round(saliency_map / (TIE * np.ptp(saliency_map)))
    return stepped


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _area_change(reference: Explanation, candidate: Explanation, place: int, curve: str) -> float | None:
    """The difference of two areas, from all of the picture to none of it, in parts of what the float model loses."""
    span = reference.intact[place] - reference.blank[place]
    if abs(span) <= FLOOR * max(abs(reference.intact[place]), abs(reference.blank[place])):
        return None
    areas = [_area(explanation, place, curve) for explanation in (reference, candidate)]
    change = float((areas[1] - areas[0]) / span)
    return change if np.isfinite(change) else None


def _area(explanation: Explanation, place: int, curve: str) -> float:
    ends = (explanation.intact[place], explanation.blank[place])
    first, last = ends if curve == "deletion" else ends[::-1]
    scores = explanation.deletion if curve == "deletion" else explanation.insertion
    return float(np.trapezoid([first, *scores[place], last], dx=1 / STEPS))
