"""About how long a build takes, before it is begun: what its stages took in earlier builds, or a rough figure.

It is an upper bound of the planned work: what devices share is counted for each, and nothing is left out by the search.
What a search adds to the plan (other options, layers in float, pruning) is not in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.plan import Plan
from compiler.plan.jobs import Job
from compiler.store import StageName, Store

EACH = (StageName.SPECIALIZE, StageName.COMPILE, StageName.REFERENCE, StageName.VERIFY)
"""Stages of every candidate."""

JUDGED = (StageName.OUTPUTS, StageName.SPEED, StageName.MEMORY)
"""Stages of every candidate that gates judge."""

QUANTIZED = (StageName.QUANTIZE, StageName.SENSITIVITY)
"""Stages of every quantized candidate; observing is part of quantizing."""

WHOLE = (StageName.REWRITE, StageName.KERNELS, StageName.SALIENCY, StageName.LAYERS)
"""Stages of every device."""

ROUGH_S = 2.5
"""A stage that nobody has seen yet: what those of the example's six devices take on average, with an allowance (the
record is benchmarks/build.json). Another model may take ten times as long or a tenth."""


@dataclass(frozen=True)
class Forecast:
    """How long a build may take.

    Args:
        seconds: Wall time.
        basis: What that comes from, in words.
    """

    seconds: float
    basis: str


def forecast(jobs: Sequence[Job], store: Store, *, most: int) -> Forecast:
    """The wall time of a build from nothing, with so many devices at a time.

    Args:
        jobs: The devices.
        store: Where stages of earlier builds are.
        most: Devices at a time, ≥ 1.
    """
    known = {name: statistics.median(seconds) for name, seconds in store.durations().items()}
    total = sum(_device_s(own.plan, known) for job in jobs for own in job.by_target) / max(1, min(most, len(jobs)))
    if not known:
        return Forecast(total, f"roughly: {ROUGH_S:g} s a stage, since no earlier build is in {store.root}")
    return Forecast(total, f"from nothing, by stages of earlier builds in {store.root}; others {ROUGH_S:g} s each")


def _device_s(plan: Plan, known: Mapping[str, float]) -> float:
    judged = JUDGED if plan.constraints.any else ()
    quantized = sum(rule.scheme is not None for rule in plan.candidates)
    return (
        sum(_stage_s(stage, known) for stage in WHOLE)
        + plan.pieces * sum(_stage_s(stage, known) for stage in (*EACH, *judged))
        + quantized * sum(_stage_s(stage, known) for stage in QUANTIZED)
    )


def _stage_s(stage: StageName, known: Mapping[str, float]) -> float:
    return known.get(stage, ROUGH_S)
