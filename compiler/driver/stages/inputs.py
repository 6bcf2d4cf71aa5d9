"""What a device's artifact is verified on: sample inputs at the smallest, the optimal and the largest sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import onnx_ir as ir

from compiler.errors import CompilerError, ModelError, UsageError, combine
from compiler.evaluate import open_calibration
from compiler.evaluate.samples import SUFFIXES, Samples, batch_of, load_samples, make_samples
from compiler.fleet import DeviceClass, Fleet, Range
from compiler.fleet.data import Calibration
from compiler.model.frontend import bind_shapes, describe_inputs, free_dims
from compiler.model.graph import graph_digest
from compiler.model.numerics import Arrays
from compiler.model.spec import TensorSpec

SEED = 0

FEW = 32
"""Samples that are enough to compare builds on."""

_Ranges = tuple[tuple[str, Range], ...]


@dataclass(frozen=True)
class VerificationInputs:
    """Inputs for one device.

    Args:
        points: Label → inputs, at min, opt and max of what is a range.
        probe: The inputs that passes are probed with.
        origin: Where they are from, as every figure's label says.
        warnings: What is odd about them.
        is_random: Whether they were made up, since the fleet file names no data.
    """

    points: Mapping[str, Arrays]
    probe: Arrays
    origin: str
    warnings: tuple[str, ...]
    is_random: bool = False


@dataclass(frozen=True)
class Prepared:
    """What a device's build starts from; devices with the same sizes share one.

    Args:
        model: The imported model with the device's sizes; nobody changes it.
        digest: Its graph digest.
        inputs: What it is judged on.
    """

    model: ir.Model
    digest: str
    inputs: VerificationInputs


def prepare(
    fleet: Fleet, model: ir.Model, devices: Sequence[DeviceClass]
) -> tuple[dict[str, Prepared], dict[str, CompilerError]]:
    """Binds the model and draws the inputs of every device, before anything is built.

    Args:
        fleet: Where the calibration data are.
        model: The model as it was read.
        devices: The device classes to build for.

    Returns:
        Device name → what its build starts from; and of the others, why sizes or data do not fit the model.

    Raises:
        UsageError: Sizes or calibration data fit for no device; every such problem is named once.
    """
    ready: dict[_Ranges, Prepared] = {}
    names: dict[str, _Ranges] = {}
    failed: dict[str, CompilerError] = {}
    for device in devices:
        try:
            ranges = _ranges(model, device)
            ready[ranges] = ready.get(ranges) or _prepare(fleet, model, device)
            names[device.name] = ranges
        except (UsageError, ModelError) as error:
            failed[device.name] = error
    if failed and not ready:
        raise combine(list({str(error): error for error in failed.values()}.values()))
    return {name: ready[ranges] for name, ranges in names.items()}, failed


def bind_device(model: ir.Model, device: DeviceClass) -> ir.Model:
    """The model with the device's sizes; a batch nobody stated is left to a model that has a fixed one.

    Raises:
        FleetError: The sizes do not fit the model.
    """
    return bind_shapes(model, dict(_ranges(model, device)), where=device.place).model


def verification_inputs(fleet: Fleet, model: ir.Model, device: DeviceClass) -> VerificationInputs:
    """Inputs from the fleet's calibration data, or random ones where it names none.

    Raises:
        DataError: The calibration data do not fit the model; every problem is named.
    """
    specs = describe_inputs(model)
    free = {name: sizes for name, sizes in {"batch": device.batch, **device.dims}.items() if not sizes.is_fixed}
    steps = {step: {name: getattr(sizes, step) for name, sizes in free.items()} for step in ("min", "opt", "max")}
    labelled = {sizes_label(sizes): sizes for sizes in steps.values()}
    if fleet.calibration is not None:
        drawn = dict.fromkeys(labelled, _calibration(fleet, fleet.calibration, specs))
    else:
        drawn = {label: _random(specs, sizes) for label, sizes in labelled.items()}
    points = {
        label: batch_of(drawn[label], specs, sizes.get("batch", device.batch.opt)) for label, sizes in labelled.items()
    }
    first = next(iter(drawn.values()))
    return VerificationInputs(
        points, points[sizes_label(steps["min"])], first.origin, first.warnings, fleet.calibration is None
    )


def _prepare(fleet: Fleet, model: ir.Model, device: DeviceClass) -> Prepared:
    bound = bind_device(model, device)
    return Prepared(bound, graph_digest(bound), verification_inputs(fleet, bound, device))


def _ranges(model: ir.Model, device: DeviceClass) -> _Ranges:
    ranges: dict[str, Range] = {"batch": device.batch, **device.dims}
    stated = any(
        keys[-1:] == ("batch",) for keys in device.origin.lines if keys[:2] in (("batch",), ("devices", device.name))
    )
    if not stated and not free_dims(model):
        del ranges["batch"]
    return tuple(ranges.items())


def _calibration(fleet: Fleet, calibration: Calibration, specs: tuple[TensorSpec, ...]) -> Samples:
    """All samples where they are arrays, which stay on disk; the first few where they are pictures or computed."""
    path = calibration.path
    if path.suffix in SUFFIXES or (path.is_dir() and any(one.suffix in SUFFIXES for one in path.iterdir())):
        return load_samples(path, specs, count=calibration.samples)
    dataset = open_calibration(calibration, specs, fleet.preprocess)
    items = tuple(islice(dataset.batches(1), FEW))
    return Samples(items, dataset.origin, dataset.warnings)


def _random(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Samples:
    others = {name: size for name, size in sizes.items() if name != "batch"}
    return make_samples(specs, seed=SEED, count=8, sizes=others)


def sizes_label(sizes: Mapping[str, int]) -> str:
    """Sizes of free dimensions as figures are labelled with them: `batch=8`, or `fixed` where none is free."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"
