"""What is delivered for serving: the builds of a ladder with what each costs, and what inputs and outputs look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import FiniteFloat

from compiler.artifact.adapter import Number
from compiler.artifact.artifact import Evidence

RUNGS = "rungs"
"""Folder of a device's other builds, in its own folder."""


@dataclass(frozen=True)
class ServiceTime:
    """Milliseconds of one run of a build at one batch size.

    Args:
        items: Items of the batch.
        runs: How many runs were timed.
        p50_ms: Half of them took at most this.
        p95_ms: 95 % of them took at most this.
    """

    items: int
    runs: int
    p50_ms: FiniteFloat
    p95_ms: FiniteFloat


@dataclass(frozen=True)
class LadderRung:
    """One build of the ladder.

    Args:
        name: Its name: the precision, and the trial where two have the same.
        trial: The trial it is from.
        folder: Its artifact's folder, relative to the device's; empty for the delivered build itself.
        manifest_sha256: Digest of its manifest; empty for the delivered build itself.
        service: What runs take, by batch size; none where it cannot run on the machine that built it.
        evidence: Where those were measured.
        accuracy_ratio: Its score over the float model's, on data that did not choose it if there are any; 1 where
            nothing judged it.
        drop_pct: Points of the task's metric that it loses; None where nothing judged it.
        low_pct: Lower end of the interval of that.
        high_pct: Upper end.
        is_certified: Whether those are of data that did not choose it.
        memory_bytes: What the model itself takes when it runs; None where nobody measured it.
        is_degraded: Whether only the `degraded:` limits let it pass.
    """

    name: str
    trial: int
    folder: str
    manifest_sha256: str
    service: tuple[ServiceTime, ...]
    evidence: Evidence
    accuracy_ratio: FiniteFloat
    drop_pct: Number
    low_pct: Number
    high_pct: Number
    is_certified: bool
    memory_bytes: int | None
    is_degraded: bool = False


@dataclass(frozen=True)
class LadderFacts:
    """The builds that serve a device, the most accurate first.

    Args:
        slo_ms: Time of a request that says nothing, in milliseconds.
        rungs: The builds.
        left_out: Trial that passed its gates → why it is no rung.
    """

    slo_ms: FiniteFloat
    rungs: tuple[LadderRung, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Histogram:
    """Shares of a figure between edges; below the first and above the last are shares too.

    Args:
        edges: Ascending.
        shares: One more than edges; they sum to 1.
    """

    edges: tuple[FiniteFloat, ...]
    shares: tuple[FiniteFloat, ...]


@dataclass(frozen=True)
class TensorFigures:
    """What a tensor looks like over the calibration data: figures only, no samples.

    Args:
        minimum: Least element.
        maximum: Greatest element.
        mean: Mean of all elements.
        histograms: Statistic of one sample → its histogram.
    """

    minimum: FiniteFloat
    maximum: FiniteFloat
    mean: FiniteFloat
    histograms: Mapping[str, Histogram]


@dataclass(frozen=True)
class DriftFigures:
    """What the calibration data and the float model's outputs on them look like.

    Args:
        samples: How many samples.
        sha256: Digest of the calibration data.
        inputs: By name.
        outputs: By name.
    """

    samples: int
    sha256: str
    inputs: Mapping[str, TensorFigures]
    outputs: Mapping[str, TensorFigures]
