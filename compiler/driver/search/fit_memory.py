"""A candidate made anew with fewer bytes for its weights, until what is measured keeps the limit on memory.

    build → measure payload and run memory → both within: verify, keep
      ↑           └ over: as many bytes fewer as are missing, while the target has smaller choices
      └───────────┘

The limit that a target is given counts the payload only, and what it knows of the size of its code and of the memory
that a run takes is an estimate; the gates count what was measured.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Protocol

from compiler.artifact.schema import Footprint
from compiler.driver.measure.memory import MIB, SMALLEST_BYTES, measure_footprint, reference_footprint
from compiler.driver.stages.candidate import UnverifiedCandidate
from compiler.driver.stages.context import BuildContext
from compiler.fleet import Limits
from compiler.store import StageName

MAX_BUILDS = 4
"""Builds after the first one: each comes nearer by what was missing, so that one or two are the rule."""


class Remake(Protocol):
    """Makes the same candidate with fewer bytes for its payload."""

    def __call__(self, *, payload_bytes: int) -> UnverifiedCandidate:
        """The build; raises CompilerError where it fails."""


def fit_memory(
    context: BuildContext, made: UnverifiedCandidate, original: Footprint | None, *, remake: Remake
) -> UnverifiedCandidate:
    """The candidate, or a smaller build of it that keeps the limit on memory; itself where none does.

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
    attempt = made
    for _ in range(MAX_BUILDS):
        least, given = _least_bytes(attempt), attempt.plan.target_plan.payload_bytes
        with context.clock.timed(StageName.MEMORY):
            footprint = measure_footprint(context, attempt, original)
        excess = excess_bytes(reference_footprint(attempt, original), footprint, limits)
        if excess <= 0:
            return attempt
        if least is None or given is None or given <= least:
            return made
        most = max(least, min(given, footprint.weights_bytes) - excess)
        context.clock.note(
            f"{made.plan.precision}: {excess / MIB:.2f} MiB over the limit on memory; its payload gets "
            f"{most / MIB:.1f} MiB, and weights are made smaller"
        )
        attempt = remake(payload_bytes=most)
    return made


def _least_bytes(made: UnverifiedCandidate) -> int | None:
    """The least payload that another build may have; 0 where weights are chosen by bytes, and the choice says it."""
    scheme = made.plan.rule.scheme
    return 0 if scheme is not None and scheme.weights is not None else made.built.artifact.least_payload_bytes


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
