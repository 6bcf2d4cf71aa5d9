"""A candidate made anew with fewer bytes for its weights, until what is measured keeps the limit on memory.

    build → measure payload and run memory → both within: verify, keep
      ↑           ├ over: as many bytes fewer as are missing, while the target has smaller choices
      │           └ within after a build that was over, and more than a little is spare: as many bytes more
      └───────────┘

The limit that a target is given counts the payload only, and what it knows of the size of its code and of the memory
that a run takes is an estimate; the gates count what was measured. Smaller weights may also take less memory beside
them, as where a kernel transforms none when it runs: then the first step was too large.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Protocol

from compiler.artifact.schema import Footprint
from compiler.driver.measure.memory import MIB, SMALLEST_BYTES, measure_footprint, reference_footprint
from compiler.driver.stages.candidate import UnverifiedCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.weights import read_least_bytes
from compiler.fleet import Limits
from compiler.store import StageName

MAX_BUILDS = 4
"""Builds after the first one: each comes nearer by what was missing, so that one or two are the rule."""

SPARE = 0.02
"""Of a payload: less than this is left as it is, since a build takes longer than it would gain."""


class Remake(Protocol):
    """Makes the same candidate with fewer bytes for its payload."""

    def __call__(self, *, payload_bytes: int) -> UnverifiedCandidate:
        """The build; raises CompilerError where it fails."""


def fit_memory(
    context: BuildContext, made: UnverifiedCandidate, original: Footprint | None, *, remake: Remake
) -> UnverifiedCandidate:
    """The candidate, or a smaller build of it that keeps the limit on memory; the smallest of them where none does.

    Args:
        context: The device.
        made: The candidate as it is made first.
        original: The float original's memory; None where the target has no build of it.
        remake: Makes it anew.

    Raises:
        CompilerError: A smaller build fails.
    """
    limits = context.job.plan.constraints.limits
    if (
        (limits.memory_reduction_pct is None and limits.memory_mib is None)
        or made.plan.is_baseline
        or context.is_quantized
    ):
        return made
    attempt, fitting, over = made, None, None
    others = _other_bytes(made.plan.target_plan.payload_bytes, limits)
    for _ in range(MAX_BUILDS + 1):
        least, given = _least_bytes(attempt), attempt.plan.target_plan.payload_bytes
        with context.clock.timed(StageName.MEMORY):
            footprint = measure_footprint(context, attempt, original)
        excess = excess_bytes(reference_footprint(attempt, original), footprint, limits)
        fitting, is_over = (fitting, True) if excess > 0 else (attempt, False)
        if least is None or given is None:
            break
        size = min(given, footprint.weights_bytes)
        slope = process_slope(size, footprint.process_bytes, others)
        is_last = is_over and fitting is not None
        most = next_payload(size, excess, least=least, over=over, is_last=is_last, slope=slope)
        if most is None:
            break
        over = size if is_over else over
        context.clock.note(
            f"{made.plan.precision}: {abs(excess) / MIB:.2f} MiB {'over' if is_over else 'below'} the limit on memory; "
            f"its payload gets {most / MIB:.1f} MiB, and weights are made {'smaller' if is_over else 'larger'}"
        )
        attempt = remake(payload_bytes=most)
    return fitting or attempt


def _other_bytes(payload_bytes: int | None, limits: Limits) -> int | None:
    """What the plan reckons that a process takes beside its weights; None where no limit is on the process."""
    if payload_bytes is None or limits.memory_mib is None:
        return None
    return int(limits.memory_mib * MIB) - payload_bytes


def process_slope(size: int, process_bytes: int | None, others: int | None) -> float:
    """Bytes of a process that a byte of its payload takes: more than 1 where a runtime keeps copies of weights.

    Args:
        size: Bytes of the payload.
        process_bytes: What the process took; None where it was not measured.
        others: What it is reckoned to take beside; None where that is not known.
    """
    if process_bytes is None or others is None or size <= 0:
        return 1.0
    return max(1.0, (process_bytes - others) / size)


def next_payload(
    size: int, excess: int, *, least: int, over: int | None, is_last: bool, slope: float = 1.0
) -> int | None:
    """Bytes that the payload of the next build may take; None where there is none to be made.

    Args:
        size: Bytes of the payload that was measured, or what it was allowed if that is less.
        excess: Bytes that it was over the limit by; negative where they are spare.
        least: The least payload that the target can make.
        over: Bytes of the smallest payload that was over the limit; None where none was.
        is_last: Whether a smaller build keeps the limit already, and this one does not.
        slope: Bytes that one of the payload takes of what the limit is on.
    """
    excess = int(excess / slope)
    if excess > 0:
        return None if is_last or size <= least else max(least, size - excess)
    if over is None or -excess < SPARE * size:
        return None
    # What was over the limit once is not built again.
    more = min(size - excess, (size + over) // 2)
    return more if more - size >= SPARE * size else None


def _least_bytes(made: UnverifiedCandidate) -> int | None:
    """The least payload that another build may have; None where the target makes none smaller."""
    scheme = made.plan.rule.scheme
    if scheme is not None and scheme.weights is not None:
        return read_least_bytes(made.border.entries)
    return made.built.artifact.least_payload_bytes


def excess_bytes(reference: Footprint, footprint: Footprint, limits: Limits) -> int:
    """Bytes that an artifact takes more than a limit allows: of its payload or when it runs, whichever is over by more.

    Args:
        reference: What the limit counts from.
        footprint: The artifact's.
        limits: Those that the device must hold.
    """
    over = []
    if limits.memory_mib is not None and footprint.process_bytes is not None:
        over.append(footprint.process_bytes - int(limits.memory_mib * MIB))
    if limits.memory_reduction_pct is None:
        return max(over, default=0)
    share = 1.0 - limits.memory_reduction_pct / 100.0
    over += [footprint.weights_bytes - floor(reference.weights_bytes * share)]
    # As the gate: of less than this nothing can be told from noise.
    if footprint.run_bytes is not None and (reference.run_bytes or 0) >= SMALLEST_BYTES:
        over.append(ceil(footprint.run_bytes - (reference.run_bytes or 0) * share))
    return max(over)
