"""Parity: every artifact that can be executed here is compared with the reference on the same inputs.

The reference is the imported model itself, before any pass, run by ONNX Runtime with optimizations off. It is compared
at the smallest, the optimal and the largest size of every dimension that is a range.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.artifact import Artifact, Evidence, artifact_to_dict
from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import (
    ExactOutput,
    Latency,
    OutputDifference,
    Parity,
    ParityPoint,
    ParityStatus,
)
from compiler.errors import GateFailed, TargetUnavailable
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import (
    TOLERANCES,
    Array,
    Arrays,
    ErrorStats,
    arrays_digest,
    compare_all,
    is_floating,
    write_arrays,
)
from compiler.passes.probe import run_unoptimized
from compiler.store import Stage, Store, canonical_json
from compiler.store.digests import code_digest
from compiler.store.scratch import scratch_folder
from compiler.target import find_target, installed_version
from compiler.target.isolate import ChildLimits, run_child

log = logging.getLogger("fleetc.build")


@dataclass(frozen=True)
class ParityCase:
    """One set of inputs and what the reference gives for them.

    Args:
        label: The sizes it stands for: `batch=8`, or `as the model has it`.
        inputs: Input name → array.
        expected: Output name → array.
    """

    label: str
    inputs: Arrays
    expected: Arrays


@dataclass(frozen=True)
class Execution:
    """What running an artifact gave.

    Args:
        evidence: Where it ran.
        note: What the runner says about how far the run stands for the device.
        outputs: Output name → array, for every point.
        latencies_ms: Milliseconds of every timed run, for every point.
        instructions: Guest instructions of one inference of the first point; None where nothing counts them.
    """

    evidence: Evidence
    note: str
    outputs: tuple[Arrays, ...]
    latencies_ms: tuple[tuple[float, ...], ...]
    instructions: int | None


@dataclass(frozen=True)
class Verification:
    """What verifying an artifact gave.

    Args:
        parity: Whether it computes what the reference does.
        latency: Per point: p50, p90, p99 in ms, inferences per second; empty where nothing was timed.
        instructions: Guest instructions of one inference of the first point; None where nothing counts them.
    """

    parity: Parity
    latency: tuple[Latency, ...] = ()
    instructions: int | None = None

    @property
    def evidence(self) -> Evidence:
        """Where the artifact ran."""
        return self.parity.evidence

    @property
    def reason(self) -> str:
        """Why it was not executed, or what the runner says about the run."""
        return self.parity.reason


def reference_cases(model: ir.Model, digest: str, inputs: Mapping[str, Arrays], store: Store) -> tuple[ParityCase, ...]:
    """The reference's outputs for every set of inputs, computed once and kept in the store.

    Args:
        model: The imported model, dimensions bound.
        digest: Its graph digest.
        inputs: Label → arrays.
        store: Where finished stages are.

    Raises:
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    return tuple(ParityCase(label, arrays, _expected(model, digest, arrays, store)) for label, arrays in inputs.items())


def verify_artifact(
    artifact: Artifact,
    digest: str,
    points: Sequence[ParityCase],
    *,
    tolerance: str,
    repeat: int,
    where: str,
    store: Store,
    limits: ChildLimits,
) -> Verification:
    """Runs the artifact where it can run here and checks its parity; a pass is kept in the store, nothing else is.

    Args:
        artifact: What was built.
        digest: Digest of the build stage.
        points: Inputs and expected outputs.
        tolerance: Name of the tolerance every output of every point must meet.
        repeat: Timed runs per point.
        where: Device, for messages.
        store: Where finished stages are.
        limits: What the child process may use.

    Raises:
        GateFailed: An output is outside the tolerance; the message gives every such output's figures.
    """
    if reason := artifact.deferred or _unavailable_here(artifact):
        log.info("%s: not executed: %s", where, reason)
        return _not_executed(tolerance, reason)
    stage = Stage("verify", _key(digest, points, tolerance, repeat))

    def make(folder: Path) -> None:
        verification = check_parity(artifact, points, tolerance=tolerance, repeat=repeat, where=where, limits=limits)
        (folder / "verdict.json").write_text(json.dumps(to_json(verification), indent=1), encoding="utf-8")

    try:
        entry = store.obtain(stage, make)
    except TargetUnavailable as error:
        log.info("%s: not executed: %s", where, error.what)
        return _not_executed(tolerance, error.what)
    return parse(Verification, json.loads((entry.files / "verdict.json").read_text(encoding="utf-8")))


def _not_executed(tolerance: str, reason: str) -> Verification:
    return Verification(Parity(ParityStatus.NOT_EXECUTED, tolerance, Evidence.NONE, reason))


def check_parity(
    artifact: Artifact, points: Sequence[ParityCase], *, tolerance: str, repeat: int, where: str, limits: ChildLimits
) -> Verification:
    """Runs the artifact on every point and compares its outputs with the reference's; nothing is kept.

    Raises:
        GateFailed: An output is outside the tolerance.
        TargetUnavailable: It cannot run on this machine.
    """
    inputs = [point.inputs for point in points]
    run = execute(artifact, inputs, repeat=repeat, instructions=True, where=where, limits=limits)
    _raise_failures(points, run, tolerance, where)
    compared = tuple(compare_point(point, outputs) for point, outputs in zip(points, run.outputs, strict=True))
    return Verification(
        Parity(ParityStatus.PASSED, tolerance, run.evidence, run.note, compared),
        _latencies(points, run) if run.evidence != Evidence.EMULATOR else (),  # an emulator's times say nothing
        run.instructions,
    )


def execute(
    artifact: Artifact, inputs: Sequence[Arrays], *, repeat: int, instructions: bool, where: str, limits: ChildLimits
) -> Execution:
    """Runs an artifact in a child process.

    Raises:
        TargetUnavailable: It cannot run on this machine.
        ToolchainFailed: It crashed, hung or used too much memory.
    """
    with scratch_folder() as folder:
        for index, arrays in enumerate(inputs):
            write_arrays(folder / f"in{index}.npz", arrays)
        items = [
            {"inputs": str(folder / f"in{i}.npz"), "outputs": str(folder / f"out{i}.npz")} for i in range(len(inputs))
        ]
        request = {
            "artifact": {**artifact_to_dict(artifact), "root": str(artifact.root)},
            "items": items,
            "repeat": repeat,
            "instructions": instructions,
        }
        value = run_child("execute", request, folder=folder, limits=limits, where=where)
        outputs = tuple(_load(Path(item["outputs"])) for item in items)
    return Execution(
        Evidence(value["evidence"]),
        value["note"],
        outputs,
        tuple(map(tuple, value["latencies_ms"])),
        value["instructions"],
    )


def failures(expected: Arrays, actual: Arrays, tolerance: str) -> dict[str, ErrorStats]:
    """Outputs that are outside a tolerance; integers and booleans must always be equal."""
    level, exact = TOLERANCES[tolerance], TOLERANCES["exact"]
    stats = compare_all(expected, actual)
    return {
        name: one for name, one in stats.items() if not (level if is_floating(expected[name]) else exact).accepts(one)
    }


def latency_summary(label: str, batch: int, times_ms: Sequence[float]) -> Latency:
    """p50, p90 and p99 in ms, and items per second at the median."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    return Latency(label, len(times_ms), p50, p90, p99, batch / p50 * 1e3)


def _raise_failures(points: Sequence[ParityCase], run: Execution, tolerance: str, where: str) -> None:
    lines = [
        f"  - {point.label}: output '{name}': {stats}"
        for point, outputs in zip(points, run.outputs, strict=True)
        for name, stats in failures(point.expected, outputs, tolerance).items()
    ]
    if lines:
        level = TOLERANCES[tolerance]
        raise GateFailed(
            f"the artifact differs from the reference by more than '{level.name}' allows "
            f"(SQNR ≥ {level.sqnr_db_min:g} dB; {run.evidence}):\n" + "\n".join(lines),
            where=where,
        )


def compare_point(point: ParityCase, outputs: Arrays) -> ParityPoint:
    """How far each output of one point is from the expected one."""
    stats = compare_all(point.expected, outputs)
    return ParityPoint(point.label, {name: _compared(output) for name, output in stats.items()})


def _compared(stats: ErrorStats) -> ExactOutput | OutputDifference:
    if stats.sqnr_db == math.inf:  # JSON has no infinity
        return ExactOutput(stats.elements)
    return OutputDifference(stats.elements, stats.sqnr_db, stats.cosine, stats.worst_abs, stats.worst_index)


def _latencies(points: Sequence[ParityCase], run: Execution) -> tuple[Latency, ...]:
    return tuple(
        latency_summary(point.label, batch_size(point.inputs), times)
        for point, times in zip(points, run.latencies_ms, strict=True)
        if times
    )


def batch_size(inputs: Arrays) -> int:
    """Size of the first dimension of the first input; 1 for a scalar."""
    first = next(iter(inputs.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _expected(model: ir.Model, digest: str, inputs: Arrays, store: Store) -> dict[str, Array]:
    parts = (
        ("model", digest),
        ("inputs", arrays_digest(inputs)),
        ("onnxruntime", installed_version("onnxruntime")),
        ("compiler", code_digest("compiler.passes.probe")),
    )
    entry = store.obtain(
        Stage("reference", parts),
        lambda folder: write_arrays(folder / "outputs.npz", run_unoptimized(model, inputs)),
    )
    return _load(entry.files / "outputs.npz")


def _unavailable_here(artifact: Artifact) -> str:
    ask = getattr(find_target(artifact.target), "unavailable_here", None)
    return str(ask(artifact)) if ask else ""


def _key(digest: str, points: Sequence[ParityCase], tolerance: str, repeat: int) -> tuple[tuple[str, str], ...]:
    compared = [(point.label, arrays_digest(point.inputs), arrays_digest(point.expected)) for point in points]
    return (
        ("build", digest),
        ("points", canonical_json(compared)),
        ("tolerance", tolerance),
        ("repeat", str(repeat)),
        ("host", host_fingerprint()),
        ("compiler", code_digest("compiler")),
    )


def _load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
