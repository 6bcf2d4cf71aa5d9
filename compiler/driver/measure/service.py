"""What runs of a build take at the batch sizes that a server forms, timed one size after another in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compiler.artifact import Evidence
from compiler.artifact.schema import ServiceTime
from compiler.driver.measure.child import measure_in_child
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.model.numerics import Arrays
from compiler.store import StageName
from compiler.target.request import ExecuteAnswer, ExecuteTask

RUNS = 30
"""Timed runs at each size: the second slowest is the 95th percentile."""

BATCH = "batch"


def service_sizes(made: BuiltCandidate) -> list[int]:
    """Powers of two from the smallest batch to the largest, and the largest; 1 where the batch is fixed."""
    sizes = made.plan.target_plan.dims.get(BATCH)
    if sizes is None or sizes.is_fixed:
        return [1]
    found = [sizes.min]
    while found[-1] < sizes.max:
        found.append(min(2 * found[-1], sizes.max))
    return found


def measure_service(context: BuildContext, made: BuiltCandidate) -> tuple[tuple[ServiceTime, ...], Evidence]:
    """Times a build at every batch size, or takes the times from the store; none where it cannot run here."""
    evidence = made.verdict.evidence
    if evidence not in (Evidence.HOST, Evidence.DEVICE):
        return (), evidence
    sizes = service_sizes(made)
    (answer,) = measure_in_child(
        context,
        StageName.SERVICE,
        ExecuteAnswer,
        [(made.built, _at_batch(made, size)) for size in sizes],
        lambda paths: ExecuteTask(made.built.artifact, paths, tuple(map(_beside, paths)), RUNS),
        runs=RUNS,
    )
    times = zip(sizes, answer.latencies_ms, strict=True)
    return tuple(_service_time(size, taken) for size, taken in times), answer.evidence


def _beside(path: Path) -> Path:
    return path.with_name(f"out-{path.name}")


def _service_time(size: int, taken_ms: Sequence[float]) -> ServiceTime:
    return ServiceTime(size, len(taken_ms), float(np.median(taken_ms)), float(np.quantile(taken_ms, 0.95)))


def _at_batch(made: BuiltCandidate, size: int) -> Arrays:
    """The typical inputs with another batch: its samples in turn."""
    typical = made.typical.inputs
    batched = {spec.name for spec in made.built.artifact.inputs if spec.shape and spec.shape[0] == BATCH}
    return {
        name: np.take(array, np.arange(size) % len(array), axis=0) if name in batched else array
        for name, array in typical.items()
    }
