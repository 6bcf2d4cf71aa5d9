"""How alike a candidate's saliency maps are to the float model's, on the nearest thing to the device that runs here.

The float model's maps are made once for all devices of the same sizes; a candidate's once for each build. Both models
run with ONNX Runtime's optimizations where they are of floats alone.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.schema import MeasuredOn, Saliency, Shown
from compiler.driver.measure.accuracy import choose_stand_in, run_artifact
from compiler.driver.stages.any_batch import for_data_sets
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.outputs import BATCH, model_outputs
from compiler.errors import CompilerError, InternalError, StorageError
from compiler.evaluate import Images, run_dataset
from compiler.evaluate.gates import Figure
from compiler.evaluate.saliency import (
    Explanation,
    Question,
    Run,
    Similarity,
    ask,
    compare_explanations,
    explain,
    too_large,
)
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Array, Arrays, load_arrays, write_arrays
from compiler.model.reference import may_optimize
from compiler.store import Entry, StageName, read_result, write_result

SHOWN = 3
"""Pictures that the manifest keeps for the report; where no limit asks for the figures, no others are explained."""

SIDE = 64
"""Pixels: what a kept picture is shrunk to at most, some ten kilobytes of it."""

_QUESTION = "question.json"

HIDDEN = "no pictures are kept: the fleet file says `pictures: false`"


def saliency_figure(saliency: Saliency) -> Figure:
    """What the gate judges."""
    if saliency.correlation is None:
        return Figure(None, Evidence.NONE, why=saliency.note)
    return Figure(saliency.correlation, saliency.evidence, f"mean of {saliency.compared} images", saliency.note)


def measure_saliency(context: BuildContext, made: BuiltCandidate) -> Saliency:
    """Compares a built candidate's maps with the float model's.

    Raises:
        CompilerError: The model or the candidate cannot be run on the pictures.
    """
    images = context.data.images
    if isinstance(images, str):
        return _uncompared(images)
    if context.job.plan.constraints.limits.saliency_correlation_min is None:
        images = replace(images, most=SHOWN)
    stand_in = choose_stand_in(made, whole=images.dataset.whole)
    is_runnable = stand_in.measured_on != MeasuredOn.NOTHING
    if why := too_large(_float_outputs(context, images)) if is_runnable else stand_in.note:
        return _uncompared(why)
    with context.clock.timed(StageName.SALIENCY):
        original = _float_entry(context, images)
        build = _candidate_entry(context, images, made, stand_in.measured_on, original)
    want, got = _read(original.files), _read(build.files)
    similarities = compare_explanations(want, got)
    question = read_result(original, _QUESTION)
    note = "; ".join(filter(None, (stand_in.note, "" if images.may_show else HIDDEN)))
    return replace(
        _summary(similarities, stand_in.measured_on, note),
        score=question["score"],
        shown=tuple(_shown(question["pictures"], want, got, similarities)),
    )


def show_saliency(context: BuildContext, made: BuiltCandidate) -> Saliency:
    """The same where no limit asks for it: what cannot be compared is said and stops nothing.

    Raises:
        StorageError: The cache's disk is full.
        InternalError: A bug.
    """
    try:
        return measure_saliency(context, made)
    except (StorageError, InternalError):
        raise
    except CompilerError as error:
        return _uncompared(error.what.splitlines()[0])


def _uncompared(why: str) -> Saliency:
    return Saliency(None, None, 0, 0, "", MeasuredOn.NOTHING, Evidence.NONE, why)


def _summary(similarities: Sequence[Similarity], measured_on: MeasuredOn, note: str) -> Saliency:
    """The similarities of all pictures in a few figures, rounded to what repeats."""
    correlations = [similarity.correlation for similarity in similarities if similarity.correlation is not None]
    counts = Counter(similarity.why for similarity in similarities if similarity.why)
    odd = [f"{count} of {len(similarities)} images: {why}" for why, count in counts.items()]
    return Saliency(
        correlation=_mean(correlations),
        lowest_correlation=_rounded(min(correlations, default=None)),
        compared=len(correlations),
        images=len(similarities),
        score="",
        measured_on=measured_on,
        evidence=Evidence.HOST,
        note="; ".join(filter(None, (*odd, f"measured on the {measured_on}", note))),
        top_overlap=_mean(similarity.overlap for similarity in similarities),
        insertion_change=_mean(similarity.insertion for similarity in similarities),
        deletion_change=_mean(similarity.deletion for similarity in similarities),
    )


def _float_entry(context: BuildContext, images: Images) -> Entry:
    """The float model's maps, its score in words, and the pictures to be shown, if any may be."""
    model, digest = context.original

    def compute(folder: Path) -> None:
        question = ask(_float_outputs(context, images), images)
        _write(folder, explain(_run_model(model), question))
        pictures = list(_thumbnails(question)) if images.may_show else []
        write_result(folder, _QUESTION, {"score": question.words, "pictures": pictures})

    subject: dict[str, object] = {"model": digest, "pictures": images.may_show, "host": host_fingerprint()}
    return context.stages.run(StageName.SALIENCY, compute, **subject, **_inputs(images))


def _candidate_entry(
    context: BuildContext, images: Images, made: BuiltCandidate, measured_on: MeasuredOn, original: Entry
) -> Entry:
    on_artifact = measured_on == MeasuredOn.ARTIFACT
    border = made.border if on_artifact else for_data_sets(context, made.plan, made.border)
    subject: dict[str, object] = {"host": host_fingerprint()}
    subject |= {"build": made.built.entry.digest} if on_artifact else {"model": border.digest}

    def compute(folder: Path) -> None:
        question = ask(_float_outputs(context, images), images)
        run = _run_artifact(context, made) if on_artifact else _run_model(border.load())
        _write(folder, explain(run, question))

    return context.stages.run(StageName.SALIENCY, compute, **subject, original=original.digest, **_inputs(images))


def _run_model(model: ir.Model) -> Run:
    """A model under ONNX Runtime; optimized where it is of floats alone, since maps are compared by rank, with ties."""
    return partial(run_dataset, model, batch=BATCH, is_optimized=may_optimize(model))


def _inputs(images: Images) -> dict[str, object]:
    return {"data": images.dataset.digest, "task": images.task, "output": images.output, "most": images.most}


def _float_outputs(context: BuildContext, images: Images) -> Arrays:
    return model_outputs(*context.original, images.dataset, context.stages)


def _run_artifact(context: BuildContext, made: BuiltCandidate) -> Run:
    batch = made.plan.dims["batch"].opt if "batch" in made.plan.dims else 1
    where, limits = f"{context.name}: saliency", context.options.child_limits
    return lambda dataset: run_artifact(made.built.artifact, dataset, batch=batch, where=where, child_limits=limits)[0]


def _write(folder: Path, explanation: Explanation) -> None:
    maps: Arrays = {f"map{place}": values for place, values in enumerate(explanation.maps)}
    rest = {name: getattr(explanation, name) for name in ("intact", "blank", "deletion", "insertion")}
    write_arrays(folder / "maps.npz", {**maps, **rest})


def _read(folder: Path) -> Explanation:
    arrays = {name: array.astype(np.float64, copy=False) for name, array in load_arrays(folder / "maps.npz").items()}
    maps = tuple(arrays[f"map{place}"] for place in range(len(arrays["intact"])))
    return Explanation(maps, *(arrays[name] for name in ("intact", "blank", "deletion", "insertion")))


def _shown(
    pictures: Sequence[str], want: Explanation, got: Explanation, similarities: Sequence[Similarity]
) -> Iterator[Shown]:
    for png, first, second, similarity in zip(pictures, want.maps, got.maps, similarities, strict=False):
        yield Shown(png, _rows(first), _rows(second), _rounded(similarity.correlation))


def _rows(scores: Array) -> tuple[tuple[float, ...], ...]:
    """A map with its largest magnitude at 1, or zeros where it says nothing."""
    values = np.nan_to_num(scores.astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(np.abs(values).max())
    scaled = values / top if top else values
    return tuple(tuple(round(float(value), 3) for value in row) for row in scaled)


def _thumbnails(question: Question) -> Iterator[str]:
    """The pictures that are shown as base64 of PNG, from least to most of all channels; the model's own order of
    colours, since nothing tells another."""
    from PIL import Image

    for picture in question.pictures[:SHOWN]:
        planes = picture[0].astype(np.float64)
        planes = planes.transpose(1, 2, 0) if question.picture.channels_first else planes
        span = float(np.ptp(planes)) or 1.0
        bytes_ = ((planes - planes.min()) / span * 255).round().astype(np.uint8)
        image = Image.fromarray(bytes_[..., 0] if bytes_.shape[-1] == 1 else bytes_[..., :3])
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        yield base64.b64encode(file.getvalue()).decode("ascii")


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return _rounded(float(np.mean(defined))) if defined else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
