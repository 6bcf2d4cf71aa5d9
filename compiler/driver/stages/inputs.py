"""What a device's artifact is verified on: sample inputs at the smallest, the optimal and the largest sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import onnx_ir as ir

from compiler.errors import CompilerError, FleetError, ModelError, UnsupportedModel, UsageError, combine
from compiler.evaluate import open_calibration
from compiler.evaluate.arrays import array_shapes
from compiler.evaluate.samples import SUFFIXES, Samples, batch_of, load_samples, make_samples
from compiler.evaluate.text import TokenIds, cut_cache, empty_cache, read_tokens, token_inputs
from compiler.fleet import DeviceClass, Fleet, Range
from compiler.fleet.data import Calibration
from compiler.fleet.sizes import sum_of
from compiler.model.decoder import Decoder, find_decoder
from compiler.model.frontend import (
    Imported,
    bind_shapes,
    correct_outputs,
    cut_model,
    describe_inputs,
    first_dims,
    fix_inputs,
    free_dims,
    input_kinds,
    read_model,
)
from compiler.model.frontend.kinds import InputKind
from compiler.model.graph import graph_digest
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized
from compiler.model.spec import TensorSpec
from compiler.passes.probe import run_unoptimized
from compiler.store import canonical_json

SEED = 0

FEW = 32
"""Samples that are enough to compare builds on."""

TOKENS_AT_ONCE = 256
"""Tokens of a text that the model makes a cache of in one run."""

_ANY_BATCH = Range(1, 2, 3)
"""Any range does: a batch that is one stays symbolic in the model, and its ends are nowhere in it."""

_Ranges = tuple[tuple[str, Range], ...]
_Key = tuple[_Ranges, str]


@dataclass(frozen=True)
class VerificationInputs:
    """Inputs for one device.

    Args:
        points: Label → inputs, at min, opt and max of what is a range.
        probe: The inputs that passes are probed with.
        origin: Where they are from, as every figure's label says.
        warnings: What is odd about them.
        is_random: Whether nobody gave any, and they were drawn.
    """

    points: Mapping[str, Arrays]
    probe: Arrays
    origin: str
    warnings: tuple[str, ...]
    is_random: bool = False


@dataclass(frozen=True)
class AnyBatch:
    """The imported model with all of a device's sizes but the batch, which is left open.

    Args:
        model: Nobody changes it.
        digest: Its graph digest.
        probe: One sample.
    """

    model: ir.Model
    digest: str
    probe: Arrays


@dataclass(frozen=True)
class BuildStart:
    """What a device's build starts from; devices with the same sizes share one.

    Args:
        model: The imported model with the device's sizes; nobody changes it.
        digest: Its graph digest.
        inputs: What it is judged on.
        notes: What was changed or corrected when the sizes were put in.
        any_batch: The same before the batch was put in; None where the batch is open, the model has no other, or nobody
            asked.
        sums: Sizes of dimensions that the model names as sums of others, `past + sequence`.
    """

    model: ir.Model
    digest: str
    inputs: VerificationInputs
    notes: tuple[str, ...] = ()
    any_batch: AnyBatch | None = None
    sums: Mapping[str, Range] = field(default_factory=dict)


def read_original(fleet: Fleet) -> Imported:
    """The fleet's model, or the part of it that the fleet file asks for, and notes."""
    read = read_model(fleet.model)
    part = cut_model(read.model, fleet.cut, where=fleet.origin.place(("cut",)))
    return Imported(part.model, (*read.notes, *part.notes))


def prepare(
    fleet: Fleet, model: ir.Model, devices: Sequence[DeviceClass], *, sharing: Collection[str] = ()
) -> tuple[dict[str, BuildStart], dict[str, CompilerError]]:
    """Binds the model and draws the inputs of every device, before anything is built.

    Args:
        fleet: Where the calibration data are.
        model: The model as it was read.
        devices: The device classes to build for.
        sharing: Names of those that get the model of any batch too, to share what is of the model and a scheme.

    Returns:
        Device name → what its build starts from; and of the others, why sizes or data do not fit the model.

    Raises:
        UsageError: Sizes or calibration data fit for no device; every such problem is named once.
    """
    ready: dict[tuple[_Ranges, str, bool], BuildStart] = {}
    keys: dict[str, tuple[_Ranges, str, bool]] = {}
    failed: dict[str, CompilerError] = {}
    for device in devices:
        try:
            fixed = fix_inputs(model, device.inputs, where=device.place)
            spoken = _generation_dims(fixed.model, device)
            sums = spoken | _sums_in(fixed.model, replace(device, dims={**device.dims, **spoken}))
            sized = _sized_by_samples(fleet, fixed.model, replace(device, dims={**device.dims, **sums}))
            shares = device.name in sharing
            key = (*_key(fixed.model, sized), shares)
            # devices of the same sizes share a model in memory, and its probe and reference in the store
            ready[key] = ready.get(key) or replace(_prepare(fleet, fixed, sized, shares=shares), sums=sums)
            keys[device.name] = key
        except (UsageError, ModelError) as error:
            failed[device.name] = error
    if failed and not ready:
        raise combine(list({str(error): error for error in failed.values()}.values()))
    return {name: ready[key] for name, key in keys.items()}, failed


def _sums_in(model: ir.Model, device: DeviceClass) -> dict[str, Range]:
    """Sizes of the dimensions that the model itself names as sums, as exporters do: `past + sequence`."""
    known = {"batch": device.batch, **device.dims}
    sums = {name: sum_of(name, known) for name in free_dims(model) if "+" in name and name not in device.dims}
    return {name: size for name, size in sums.items() if size is not None}


def _generation_dims(model: ir.Model, device: DeviceClass) -> dict[str, Range]:
    """Sizes of a decoder's dimensions that the fleet file does not state: new tokens, and those in the cache.

    Raises:
        UnsupportedModel: The model is no decoder.
    """
    used = device.generation
    if used is None:
        return {}
    decoder, context = find_decoder(model), used.context
    sizes = {
        decoder.sequence: Range(1, 1, used.prefill),
        decoder.past: Range(0, context // 2, context - 1),
    }
    if decoder.total and "+" not in decoder.total:
        sizes[decoder.total] = sizes[decoder.sequence] + sizes[decoder.past]
    return {name: size for name, size in sizes.items() if name and name not in device.dims}


def _sized_by_samples(fleet: Fleet, model: ir.Model, device: DeviceClass) -> DeviceClass:
    """The device with a size for each first dimension that is another length in the samples than they are many.

    Where inputs begin with dimensions of different names, as pictures and a table do, the one of the first input counts
    samples; an array of another length is complete, and its length is the size.
    """
    names = [name for name in first_dims(model) if name not in device.dims]
    path = None if fleet.calibration is None or device.generation else fleet.calibration.path
    if len(names) < 2 or path is None or path.suffix != ".npz" or not path.is_file():
        return device
    shapes = array_shapes(path)
    lengths = {
        str(value.shape[0].value): shapes[str(value.name)][0]
        for value in model.graph.inputs
        if value.shape
        and isinstance(value.shape[0], ir.SymbolicDim)
        and len(shapes.get(str(value.name), ())) == len(value.shape)
    }
    own = {name: lengths[name] for name in names[1:] if name in lengths and lengths[name] != lengths.get(names[0])}
    return replace(device, dims={**device.dims, **{name: Range(size, size, size) for name, size in own.items()}})


def _key(model: ir.Model, device: DeviceClass) -> _Key:
    """What devices that share their preparation have in common."""
    return _ranges(model, device), canonical_json(dict(device.inputs))


def bind_device(model: ir.Model, device: DeviceClass) -> Imported:
    """The model with the device's sizes, and notes; a batch nobody stated is left to a model that has a fixed one.

    Raises:
        FleetError: The sizes do not fit the model.
    """
    return bind_shapes(model, dict(_ranges(model, device)), where=device.place)


def verification_inputs(fleet: Fleet, model: ir.Model, device: DeviceClass) -> VerificationInputs:
    """Inputs from the fleet's calibration data, or random ones where it names none.

    Raises:
        DataError: The calibration data do not fit the model; every problem is named.
    """
    specs = describe_inputs(model)
    free = {name: sizes for name, sizes in {"batch": device.batch, **device.dims}.items() if not sizes.is_fixed}
    steps = {step: {name: getattr(sizes, step) for name, sizes in free.items()} for step in ("min", "opt", "max")}
    labelled = {sizes_label(sizes): sizes for sizes in steps.values()}
    smallest = sizes_label(steps["min"])
    is_text = fleet.calibration is not None and fleet.calibration.path.suffix != ".npz"
    if fleet.calibration is not None and device.generation is not None and is_text:
        return _text_points(fleet.calibration, model, labelled, smallest)
    if fleet.calibration is not None:
        drawn = dict.fromkeys(labelled, _calibration(fleet, fleet.calibration, specs))
        return _points(drawn, specs, labelled, smallest, device)
    candidates = [
        _points(
            {label: _random(specs, sizes, kinds) for label, sizes in labelled.items()},
            specs,
            labelled,
            smallest,
            device,
        )
        for kinds in (input_kinds(model), {})
    ]
    # numbers of a wrong kind may be no input of the model at all: an index beyond a table that is computed
    return next((inputs for inputs in candidates if run_or_none(model, inputs.probe) is not None), candidates[0])


def _text_points(
    calibration: Calibration, model: ir.Model, labelled: Mapping[str, Mapping[str, int]], smallest: str
) -> VerificationInputs:
    """Tokens of a text behind a cache that the model itself made of those before them.

    A cache of random numbers is nothing that a decoder ever sees: errors of rounding grow by it from layer to layer, as
    they do by no text.
    """
    ids = read_tokens(calibration.path, calibration.tokenizer)
    points = dict(zip(labelled, tokens_behind_caches(model, ids, list(labelled.values())), strict=True))
    return VerificationInputs(points, points[smallest], f"{calibration.path.name}, caches by the model itself", ())


def tokens_behind_caches(model: ir.Model, ids: TokenIds, sizes: Sequence[Mapping[str, int]]) -> list[Arrays]:
    """Inputs of a decoder at some sizes: tokens of a text behind the cache that the model itself made of those before.

    The model computes the largest cache alone: what it keeps of a token does not depend on those behind it.

    Args:
        model: The decoder.
        ids: The text; repeated where it is too short.
        sizes: Dimension → its size.
    """
    decoder, specs = find_decoder(model), describe_inputs(model)
    counts = [tuple(each.get(name, 1) for name in ("batch", decoder.sequence, decoder.past)) for each in sizes]
    rows, length, past = map(max, zip(*counts, strict=True))
    text = np.resize(ids, (rows, past + length))
    whole: Arrays = empty_cache(specs, decoder, rows=rows)
    if past:
        whole = _grown_cache(model, text[:, :past], whole, specs, decoder)
    return [
        {
            **token_inputs(text[:rows, past : past + length], past, specs, decoder),
            **cut_cache(whole, specs, decoder, rows=rows, past=past),
        }
        for rows, length, past in counts
    ]


def _grown_cache(
    model: ir.Model, text: TokenIds, cache: Arrays, specs: Sequence[TensorSpec], decoder: Decoder
) -> Arrays:
    """The cache behind a text, some tokens at a time: what a run takes grows with the square of them."""
    reference = Unoptimized(model)
    for start in range(0, text.shape[1], TOKENS_AT_ONCE):
        some = text[:, start : start + TOKENS_AT_ONCE]
        outputs = reference.run({**token_inputs(some, start, specs, decoder), **cache})
        cache = {pair.past: outputs[pair.present] for pair in decoder.pairs}
    return cache


def _points(
    drawn: Mapping[str, Samples],
    specs: tuple[TensorSpec, ...],
    labelled: Mapping[str, Mapping[str, int]],
    smallest: str,
    device: DeviceClass,
) -> VerificationInputs:
    points = {
        label: batch_of(drawn[label], specs, sizes.get("batch", device.batch.opt), sizes=sizes)
        for label, sizes in labelled.items()
    }
    first = next(iter(drawn.values()))
    return VerificationInputs(points, points[smallest], first.origin, first.warnings, first.is_random)


def run_or_none(model: ir.Model, inputs: Arrays) -> Arrays | None:
    """What the reference gives; None where it does not run the model on these inputs."""
    try:
        return run_unoptimized(model, inputs)
    except UnsupportedModel:
        return None


def _prepare(fleet: Fleet, fixed: Imported, device: DeviceClass, *, shares: bool) -> BuildStart:
    bound = bind_device(fixed.model, device)
    inputs = verification_inputs(fleet, bound.model, device)
    outputs = run_or_none(bound.model, inputs.probe)
    notes = correct_outputs(bound.model, outputs) if outputs is not None else ()
    any_batch = _any_batch(fixed.model, device, inputs.probe) if shares else None
    return BuildStart(bound.model, graph_digest(bound.model), inputs, (*fixed.notes, *bound.notes, *notes), any_batch)


def _any_batch(model: ir.Model, device: DeviceClass, probe: Arrays) -> AnyBatch | None:
    ranges = dict(_ranges(model, device))
    if not ranges.get("batch", _ANY_BATCH).is_fixed:
        return None
    try:
        free = bind_shapes(model, {**ranges, "batch": _ANY_BATCH}, where=device.place).model
    except FleetError:  # the model was made for one batch
        return None
    if any(not value.shape or isinstance(value.shape[0], int) for value in free.graph.inputs):
        return None  # not every input has an axis that counts samples
    first = {name: array[:1] for name, array in probe.items()}
    outputs = run_or_none(free, first)
    if outputs is None:
        return None
    correct_outputs(free, outputs)
    return AnyBatch(free, graph_digest(free), first)


def _ranges(model: ir.Model, device: DeviceClass) -> _Ranges:
    ranges: dict[str, Range] = {"batch": device.batch, **device.dims}
    stated = any(
        keys[-1:] == ("batch",) for keys in device.origin.lines if keys[:2] in (("batch",), ("devices", device.name))
    )
    if not stated and "batch" not in device.dims and not set(first_dims(model)) - set(device.dims):
        del ranges["batch"]
    return tuple(ranges.items())


def _calibration(fleet: Fleet, calibration: Calibration, specs: tuple[TensorSpec, ...]) -> Samples:
    """All samples where they are arrays, which stay on disk; the first few where they are pictures or computed."""
    path = calibration.path
    if path.suffix in SUFFIXES or (path.is_dir() and any(file.suffix in SUFFIXES for file in path.iterdir())):
        return load_samples(path, specs, count=calibration.samples)
    dataset = open_calibration(calibration, specs, fleet.preprocess)
    items = tuple(islice(dataset.batches(1), FEW))
    return Samples(items, dataset.origin, dataset.warnings)


def _random(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int], kinds: Mapping[str, InputKind]) -> Samples:
    others = {name: size for name, size in sizes.items() if name != "batch"}
    return make_samples(specs, seed=SEED, count=8, sizes=others, kinds=kinds)


def sizes_label(sizes: Mapping[str, int]) -> str:
    """Sizes of free dimensions as figures are labelled with them: `batch=8`, or `fixed` where none is free."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"
