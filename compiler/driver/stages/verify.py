"""Parity: every artifact that can be executed here is compared with the reference on the same inputs.

It is compared at the smallest, the optimal and the largest size of every dimension that is a range.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from compiler.artifact import Artifact, Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import (
    ExactOutput,
    Latency,
    OutputDifference,
    Parity,
    ParityPoint,
    ParityStatus,
)
from compiler.driver.stages.execute import Execution, count_instructions, emulated_run, execute
from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.run import Stages
from compiler.errors import GateFailed, TargetUnavailable, ToolchainFailed
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import (
    TOLERANCES,
    Arrays,
    ErrorStats,
    Tolerance,
    arrays_digest,
    compare_all,
    is_floating,
)
from compiler.passes.probe import least_db, own_noise_db
from compiler.passes.quantized import count_quantized_steps
from compiler.store import StageName, read_result, write_result
from compiler.target import KnowsWhereItRuns, find_target
from compiler.target.isolate import ChildLimits

_VERDICT = "verdict.json"

REPEAT_S = 5.0
"""Seconds of timed runs at one set of sizes: a model that computes for a second tells its time in few of them."""

OWN_NOISE = (
    "the reference's own outputs move by {:.1f} dB when its inputs move by less than it can tell apart: "
    "on these samples nothing comes nearer, and {:g} dB are not asked for"
)

Differences: TypeAlias = list[tuple[ParityCase, dict[str, ErrorStats]]]
"""Outputs that are outside a tolerance, point by point."""


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


def verify_artifact(
    artifact: Artifact,
    digest: str,
    points: Sequence[ParityCase],
    *,
    reference: ir.Model,
    tolerance: str,
    repeat: int,
    where: str,
    stages: Stages,
    child_limits: ChildLimits,
    is_emulated: bool = False,
    emulate_s: float = math.inf,
) -> Verification:
    """Runs the artifact where it can run here and checks its parity; a pass is kept in the store, nothing else is.

    Args:
        artifact: What was built.
        digest: Digest of the build stage.
        points: Inputs and expected outputs.
        reference: The model that gave them.
        tolerance: Name of the tolerance every output of every point must meet.
        repeat: Timed runs per point.
        where: Device, for messages.
        stages: Where it is run.
        child_limits: What the child process may use.
        is_emulated: Whether it can run in an emulator at best, whose times say nothing.
        emulate_s: Longest time for the emulator; 0 emulates nothing.

    Raises:
        GateFailed: An output is outside the tolerance; the message gives every such output's figures.
    """
    if reason := why_not_executed(artifact, is_emulated=is_emulated, emulate_s=emulate_s):
        stages.clock.note(f"not executed: {reason}")
        return _not_executed(tolerance, reason)

    def make(folder: Path) -> None:
        if is_emulated:
            judged = partial(_check_emulated, artifact, digest, points, reference=reference, tolerance=tolerance)
            check = partial(judged, repeat=repeat, where=where, stages=stages)
            verification = _emulated(check, child_limits, emulate_s)
        else:
            whole = partial(check_parity, artifact, points, reference=reference, tolerance=tolerance)
            verification = whole(repeat=repeat, where=where, child_limits=child_limits)
        write_result(folder, _VERDICT, to_json(verification))

    try:
        # timed runs have the machine to themselves; an emulator's times are thrown away, so it need not wait
        run = stages.measure if repeat and not is_emulated else stages.run
        entry = run(
            StageName.VERIFY,
            make,
            build=digest,
            points=[[point.label, arrays_digest(point.inputs), arrays_digest(point.expected)] for point in points],
            tolerance=tolerance,
            repeat=repeat,
            # a pass on one processor says nothing of another: kernels are chosen by the processor at hand
            host=host_fingerprint(),
        )
    except TargetUnavailable as error:
        stages.clock.note(f"not executed: {error.what}")
        return _not_executed(tolerance, error.what)
    return parse(Verification, read_result(entry, _VERDICT))


def why_not_executed(artifact: Artifact, *, is_emulated: bool, emulate_s: float) -> str:
    """Why an artifact is not run on this machine; empty where it is.

    Args:
        artifact: What was built.
        is_emulated: Whether it can run in an emulator at best.
        emulate_s: Longest time for the emulator; 0 emulates nothing.
    """
    left_out = "the emulator was left out by --no-emulate" if is_emulated and emulate_s == 0 else ""
    return artifact.deferred or _unavailable_here(artifact) or left_out


def _emulated(check: Callable[..., Verification], child_limits: ChildLimits, seconds: float) -> Verification:
    """The check in the time there is for the emulator; raises TargetUnavailable where that is not enough."""
    started = time.monotonic()
    try:
        return check(child_limits=replace(child_limits, timeout_s=min(child_limits.timeout_s, seconds)))
    except ToolchainFailed as error:
        # it failed by itself, and not for want of time
        if time.monotonic() - started < seconds:
            raise
        what = f"it did not end in the emulator within {seconds:g} s"
        raise TargetUnavailable(what, remedy="Give it more time with --emulate-seconds.") from error


def _not_executed(tolerance: str, reason: str) -> Verification:
    return Verification(Parity(ParityStatus.NOT_EXECUTED, tolerance, Evidence.NONE, reason))


def check_parity(
    artifact: Artifact,
    points: Sequence[ParityCase],
    *,
    reference: ir.Model,
    tolerance: str,
    repeat: int,
    where: str,
    child_limits: ChildLimits,
) -> Verification:
    """Runs the artifact on every point and compares its outputs with the reference's; nothing is kept.

    Args:
        artifact: What was built.
        points: Inputs and expected outputs.
        reference: The model that gave them: where an output is outside the tolerance, its own noise is measured.
        tolerance: Name of the tolerance every output of every point must meet.
        repeat: Timed runs per point.
        where: Device, for messages.
        child_limits: What the child process may use.

    Raises:
        GateFailed: An output is outside the tolerance, and further off than the reference's own noise.
        TargetUnavailable: It cannot run on this machine.
    """
    inputs = [point.inputs for point in points]
    run = execute(
        artifact,
        inputs,
        repeat=repeat,
        instructions=True,
        where=where,
        child_limits=child_limits,
        repeat_s=REPEAT_S,
    )
    return _verified(points, run, reference, tolerance, where)


def _check_emulated(
    artifact: Artifact,
    digest: str,
    points: Sequence[ParityCase],
    *,
    reference: ir.Model,
    tolerance: str,
    repeat: int,
    where: str,
    stages: Stages,
    child_limits: ChildLimits,
) -> Verification:
    """The same by runs that are kept; the instructions are counted of what is right."""
    started, once = time.monotonic(), partial(emulated_run, artifact, digest, where=where, stages=stages)
    runs = [once(point.inputs, child_limits=child_limits) for point in points]
    if any(run.evidence != Evidence.EMULATOR for run in runs):  # a target whose artifacts run on any processor
        native = partial(check_parity, artifact, points, reference=reference, tolerance=tolerance)
        return native(repeat=repeat, where=where, child_limits=child_limits)
    outputs = tuple(output for run in runs for output in run.outputs)
    whole = Execution(Evidence.EMULATOR, runs[0].note, outputs, (), None)
    verification = _verified(points, whole, reference, tolerance, where)
    left = replace(child_limits, timeout_s=max(0.0, child_limits.timeout_s - (time.monotonic() - started)))
    count = count_instructions(artifact, points[0].inputs, where=where, child_limits=left)
    return replace(verification, instructions=count)


def _verified(
    points: Sequence[ParityCase], run: Execution, reference: ir.Model, tolerance: str, where: str
) -> Verification:
    words = _judge(points, run, reference, tolerance, where)
    compared = tuple(compare_point(point, outputs) for point, outputs in zip(points, run.outputs, strict=True))
    return Verification(
        Parity(ParityStatus.PASSED, tolerance, run.evidence, "; ".join(filter(None, (run.note, words))), compared),
        _latencies(points, run) if run.evidence != Evidence.EMULATOR else (),  # an emulator's times say nothing
        run.instructions,
    )


def failures(expected: Arrays, actual: Arrays, tolerance: str) -> dict[str, ErrorStats]:
    """Outputs that are outside a tolerance; integers and booleans must always be equal."""
    level, exact = TOLERANCES[tolerance], TOLERANCES["exact"]
    stats = compare_all(expected, actual)
    return {
        name: difference
        for name, difference in stats.items()
        if not (level if is_floating(expected[name]) else exact).accepts(difference)
    }


def latency_summary(label: str, batch: int, times_ms: Sequence[float]) -> Latency:
    """p50, p90 and p99 in ms, and items per second at the median."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    return Latency(label, len(times_ms), p50, p90, p99, batch / p50 * 1e3)


def leave_own_noise(differing: Differences, reference: ir.Model, level: Tolerance) -> tuple[Differences, str]:
    """The differences that are more than the reference's own noise; and in words that there were others.

    Args:
        differing: Outputs that are outside the level.
        reference: The model that they are compared with.
        level: The level.
    """
    beyond, noises_db, is_quantized = [], [], count_quantized_steps(reference) > 0
    for case, outputs in differing:
        noise_db = own_noise_db(reference, case.inputs, case.expected)
        # integers and booleans must be equal, whatever the noise
        within = {
            name
            for name in noise_db.keys() & outputs
            if outputs[name].sqnr_db >= least_db(level, noise_db[name], is_quantized=is_quantized)
        }
        more = {name: stats for name, stats in outputs.items() if name not in within}
        noises_db += [noise_db[name] for name in within]
        beyond += [(case, more)] if more else []
    if not noises_db:
        return beyond, ""
    return beyond, OWN_NOISE.format(min(noises_db), level.sqnr_db_min)


def lines_of(differing: Differences) -> str:
    """Every output that differs, with its figures, one a line."""
    return "\n".join(
        f"  - {case.label}: output '{name}': {stats}" for case, outputs in differing for name, stats in outputs.items()
    )


def _judge(points: Sequence[ParityCase], run: Execution, reference: ir.Model, tolerance: str, where: str) -> str:
    """What there is to say where outputs are inside the tolerance, or inside the reference's own noise."""
    level = TOLERANCES[tolerance]
    pairs = zip(points, run.outputs, strict=True)
    compared = ((point, failures(point.expected, outputs, tolerance)) for point, outputs in pairs)
    differing, words = leave_own_noise([pair for pair in compared if pair[1]], reference, level)
    if differing:
        raise GateFailed(
            f"the artifact differs from the reference by more than '{level.name}' allows "
            f"(SQNR ≥ {level.sqnr_db_min:g} dB; {run.evidence}):\n{lines_of(differing)}",
            where=where,
        )
    return words


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


def _unavailable_here(artifact: Artifact) -> str:
    target = find_target(artifact.target)
    return target.unavailable_here(artifact) if isinstance(target, KnowsWhereItRuns) else ""
