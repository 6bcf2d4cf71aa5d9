"""What is done with an artifact after delivery: run it, time it, judge it again, finish it on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.artifact import Artifact, Evidence
from compiler.artifact.manifest import MANIFEST, Delivered, border_of, read_artifact, write_artifact
from compiler.artifact.schema import Latency, Reference
from compiler.driver.dist import note_finished
from compiler.driver.stages.border import Border
from compiler.driver.stages.compile import check_artifact
from compiler.driver.stages.execute import execute
from compiler.driver.stages.inputs import sizes_label, tokens_behind_caches
from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.verify import (
    Verification,
    batch_size,
    check_parity,
    latency_summary,
)
from compiler.errors import ArtifactError, DataError, OutputError
from compiler.evaluate.samples import batch_of, load_samples, make_samples, read_arrays
from compiler.fleet.profile import profile_for, profile_of
from compiler.fleet.yamlfile import Document, Origin
from compiler.model.frontend import (
    bind_shapes,
    cut_model,
    describe_inputs,
    describe_outputs,
    fix_inputs,
    free_dims,
    read_model,
)
from compiler.model.numerics import Arrays, write_arrays
from compiler.model.spec import TensorSpec
from compiler.passes.probe import run_unoptimized
from compiler.store import file_digest
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors
from compiler.store.scratch import scratch_folder
from compiler.target import find_target
from compiler.target.isolate import ChildLimits
from compiler.target.request import BuildRequest, build_in_child

REPEAT = 20
"""Timed runs of an artifact that is finished on its device, as many as a build makes."""


_TEXT_TOKENS = 64
"""Random tokens that a language model is given, over and over, where there are no samples."""


@dataclass(frozen=True)
class SizedInputs:
    """Inputs for a delivered artifact at one size of its dimensions, and where they are from."""

    label: str
    arrays: Arrays
    origin: str


@dataclass(frozen=True)
class Benchmark:
    """What timing a delivered artifact gave.

    Args:
        device: Name of the device class.
        precision: Precision it computes in.
        evidence: Where it ran.
        note: What the runner says about the run.
        inputs: Where the inputs are from.
        latency: Its times; None under an emulator.
        instructions_per_inference: Guest instructions; None where nothing counts them.
    """

    device: str
    precision: str
    evidence: Evidence
    note: str
    inputs: str
    latency: Latency | None
    instructions_per_inference: int | None


def run_delivered(
    folder: Path, source: Path, destination: Path, *, child_limits: ChildLimits
) -> tuple[TensorSpec, ...]:
    """Runs an artifact once on a file of inputs and writes its outputs.

    Args:
        folder: The artifact's folder.
        source: A `.npz` with one array per input, or a `.npy` for an artifact with one input.
        destination: The `.npz` to write, one array per output; or a `.npy` where there is one output.
        child_limits: What the child process may use.

    Raises:
        ArtifactError: The folder is not whole, or the artifact is deferred.
        DataError: The inputs do not fit.
        TargetUnavailable: It cannot run here.
    """
    artifact = complete(read_artifact(folder))
    inputs = _read_inputs(source, artifact.inputs)
    _refuse_destination(destination, artifact.outputs)
    (outputs,) = execute(
        artifact, [inputs], repeat=0, instructions=False, where=str(folder), child_limits=child_limits
    ).outputs
    _write_outputs(destination, outputs)
    return artifact.outputs


def bench_delivered(
    folder: Path, *, samples: Path | None, sizes: Mapping[str, int], repeat: int, child_limits: ChildLimits
) -> Benchmark:
    """Times an artifact on this machine, or counts its instructions under the emulator; each figure says which.

    Args:
        folder: The artifact's folder.
        samples: Input data; random inputs where None.
        sizes: Size of each symbolic dimension; `opt` of the plan where it is not given.
        repeat: Timed runs, after one that is not counted.
        child_limits: What the child process may use.
    """
    delivered = read_artifact(folder)
    artifact = complete(delivered)
    inputs = _inputs_at(delivered, _specs(delivered), samples, {**delivered.manifest.plan.sizes("opt"), **sizes})
    run = execute(
        artifact, [inputs.arrays], repeat=repeat, instructions=True, where=str(folder), child_limits=child_limits
    )
    is_emulated = run.evidence == Evidence.EMULATOR
    times = run.latencies_ms[0]
    has_times = times and not is_emulated  # an emulator's times say nothing
    return Benchmark(
        device=delivered.manifest.device,
        precision=artifact.precision,
        evidence=run.evidence,
        note=run.note,
        inputs=inputs.origin,
        latency=latency_summary(inputs.label, batch_size(inputs.arrays), times) if has_times else None,
        instructions_per_inference=run.instructions,
    )


def verify_delivered(
    folder: Path, *, model: Path | None, samples: Path | None, child_limits: ChildLimits
) -> tuple[Delivered, Verification]:
    """Compares an artifact with its reference again, at the smallest, optimal and largest sizes of its plan.

    Args:
        folder: The artifact's folder.
        model: The original model to compare with; the folder's border model where None, and where the border model is
            quantized or pruned: `recheck_accuracy` compares that with the original.
        samples: Input data; random inputs where None.
        child_limits: What the child process may use.

    Raises:
        ArtifactError: The folder is not whole, or the artifact is deferred.
        GateFailed: It differs from the reference.
        TargetUnavailable: It cannot run here.
    """
    delivered = read_artifact(folder)
    artifact = complete(delivered)
    original = None if model is None else original_of(delivered, model)
    # what was quantized or pruned differs from the original on purpose: parity is with the border model
    was_changed = delivered.manifest.verdict.reference == Reference.BORDER_MODEL
    reference = ir.load(border_of(folder)) if original is None or was_changed else original
    points = _points(delivered, reference, samples)
    return delivered, check_parity(
        artifact,
        points,
        reference=reference,
        tolerance=_tolerance(delivered),
        repeat=0,
        where=str(folder),
        child_limits=child_limits,
    )


def finish_delivered(folder: Path, *, cache: Path, child_limits: ChildLimits) -> Verification:
    """Completes a deferred artifact on its device: builds the border model, verifies, and replaces the folder.

    Raises:
        ArtifactError: The folder is not whole, or the artifact is complete already.
        TargetUnavailable: What the artifact waits for is not here either.
        GateFailed: What was built differs from the border model; the deferred artifact stays as it was.
    """
    delivered = read_artifact(folder)
    if not delivered.artifact.deferred:
        raise ArtifactError(
            "the artifact is complete already", where=str(folder), remedy="`fleetc verify` judges it again."
        )
    # build.json knows the artifact by the manifest that is replaced here
    before = file_digest(folder / MANIFEST)
    # the digest in the manifest was compared with the file when the folder was read
    border = Border(border_of(folder), delivered.manifest.border.sha256, (), ())
    with scratch_folder() as scratch:
        artifact = _build_again(delivered, border, scratch, cache, child_limits)
        reference = border.load()
        verification = check_parity(
            artifact,
            _points(delivered, reference, None),
            reference=reference,
            tolerance=_tolerance(delivered),
            repeat=REPEAT,
            where=str(folder),
            child_limits=child_limits,
        )
        write_artifact(
            artifact,
            border.path,
            facts=replace(
                delivered.manifest,
                fleetc=version("fleetc"),
                verdict=replace(delivered.manifest.verdict, parity=verification.parity),
            ),
            measurements=replace(
                delivered.measurements,
                evidence=verification.evidence,
                latency=verification.latency,
                instructions=verification.instructions,
                stages=(),  # of the machine that deferred it: nothing came from a store here
            ),
            folder=folder,
        )
    note_finished(folder, deferred=before)
    return verification


def _build_again(
    delivered: Delivered, border: Border, folder: Path, cache: Path, child_limits: ChildLimits
) -> Artifact:
    manifest, place = delivered.manifest, str(delivered.folder)
    whole = profile_of(Document(dict(manifest.inputs.profile.facts), Origin(place)))
    profile = profile_for(whole, manifest.artifact.target)
    target = find_target(profile.target, where=place)
    target.check(profile)
    artifact = build_in_child(
        border.path,
        BuildRequest(manifest.plan.target_plan, cache / "toolchains"),
        profile,
        workdir=folder,
        child_limits=child_limits,
        where=f"{manifest.device}: finish",
    )
    if artifact.deferred:
        raise ArtifactError(
            f"it still cannot be built here: {artifact.deferred}",
            where=place,
            remedy="Run `fleetc finish` on the device itself.",
        )
    check_artifact(artifact, border)
    return artifact


def complete(delivered: Delivered) -> Artifact:
    """The artifact; raises ArtifactError where its device must finish it first."""
    if delivered.artifact.deferred:
        raise ArtifactError(
            f"the artifact is deferred: {delivered.artifact.deferred}",
            where=str(delivered.folder),
            remedy="Run `fleetc finish` on the device first.",
        )
    return delivered.artifact


def original_of(delivered: Delivered, model: Path) -> ir.Model:
    """The original model with the sizes the artifact was built for."""
    dims = delivered.manifest.plan.dims
    free = {name: sizes for name, sizes in dims.items() if name != "batch" or not sizes.is_fixed}
    source = delivered.manifest.inputs.model
    part = cut_model(read_model(model).model, source.cut, where=str(delivered.folder)).model
    read = fix_inputs(part, source.fixed).model
    bound = bind_shapes(read, dims if free_dims(read) else free, where=str(delivered.folder)).model
    _refuse_other_model(bound, delivered, model)
    return bound


def _refuse_other_model(model: ir.Model, delivered: Delivered, path: Path) -> None:
    wanted, actual = (
        {spec.name: (spec.dtype, len(spec.shape)) for spec in (*describe_inputs(either), *describe_outputs(either))}
        for either in (ir.load(border_of(delivered.folder)), model)
    )
    if wanted != actual:
        raise DataError(
            f"the model's inputs and outputs ({', '.join(actual)}) are not the artifact's ({', '.join(wanted)})",
            where=str(path),
            remedy="Name the model the artifact was built from.",
        )


def _tolerance(delivered: Delivered) -> str:
    """What it was judged by, or would have been if it could have been executed."""
    return delivered.manifest.verdict.parity.tolerance


def _points(delivered: Delivered, reference: ir.Model, samples: Path | None) -> list[ParityCase]:
    """Inputs and the reference's outputs at the smallest, optimal and largest sizes of the plan."""
    steps = [delivered.manifest.plan.sizes(step) for step in ("min", "opt", "max")]
    specs = _specs(delivered)
    inputs = {sizes_label(sizes): _inputs_at(delivered, specs, samples, sizes) for sizes in steps}
    return [ParityCase(label, case.arrays, run_unoptimized(reference, case.arrays)) for label, case in inputs.items()]


def _specs(delivered: Delivered) -> tuple[TensorSpec, ...]:
    """What the border model takes, free dimensions by the names the plan has for them."""
    return describe_inputs(ir.load(border_of(delivered.folder)))


def _inputs_at(
    delivered: Delivered, specs: tuple[TensorSpec, ...], samples: Path | None, sizes: Mapping[str, int]
) -> SizedInputs:
    unknown = sorted(set(sizes) - {str(size) for spec in specs for size in spec.shape})
    if unknown:
        raise DataError(
            f"the artifact has no free dimension {', '.join(unknown)}",
            where=str(delivered.folder),
            remedy="`fleetc inspect` shows its inputs.",
        )
    others = {name: size for name, size in sizes.items() if name != "batch"}
    spoken = delivered.manifest.generation
    if spoken is not None and samples is None:
        # random masks and caches are nothing that a decoder ever sees
        ids = np.random.default_rng(0).integers(0, spoken.decoder.vocabulary or 1, _TEXT_TOKENS)
        (arrays,) = tokens_behind_caches(ir.load(border_of(delivered.folder)), ids, [sizes])
        return SizedInputs(sizes_label(sizes), arrays, "random tokens, caches by the border model itself")
    drawn = load_samples(samples, specs) if samples else make_samples(specs, count=8, sizes=others)
    arrays = batch_of(drawn, specs, sizes.get("batch", 1), sizes=sizes)
    return SizedInputs(sizes_label(sizes), arrays, drawn.origin)


def _read_inputs(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Arrays as they are, checked against names, types and fixed sizes."""
    arrays = read_arrays(path)
    if set(arrays) == {""} and len(specs) == 1:
        arrays = {specs[0].name: arrays[""]}
    problems = [*_input_problems(arrays, specs)]
    if problems:
        raise DataError("; ".join(problems), where=str(path))
    return arrays


def _input_problems(arrays: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> list[str]:
    names = {spec.name for spec in specs}
    problems = [f"there is no input '{name}'" for name in arrays if name not in names]
    for spec in specs:
        array = arrays.get(spec.name)
        if array is None:
            problems.append(f"input '{spec.name}' is missing")
        elif array.dtype.name != spec.dtype or not _fits(array.shape, spec.shape):
            problems.append(
                f"input '{spec.name}' is {array.dtype}{list(array.shape)}, wanted {spec.dtype}{list(spec.shape)}"
            )
    return problems


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(a == b for a, b in zip(shape, wanted, strict=True) if isinstance(b, int))


def _refuse_destination(path: Path, outputs: tuple[TensorSpec, ...]) -> None:
    if path.suffix != ".npz" and not (path.suffix == ".npy" and len(outputs) == 1):
        raise OutputError(
            f"{len(outputs)} outputs cannot be written to this kind of file",
            where=str(path),
            remedy="Name a .npz file, or a .npy file where there is one output.",
        )
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else "its folder does not exist"
        raise OutputError(f"the outputs cannot be written here: {what}", where=str(path), remedy="Name a file.")


def _write_outputs(path: Path, outputs: Arrays) -> None:
    with output_errors(path):
        if path.suffix == ".npy":
            array = next(iter(outputs.values()))
            write_atomic(path, lambda file: np.save(file, array, allow_pickle=False))
        else:
            write_atomic(path, lambda file: write_arrays(file, outputs))
