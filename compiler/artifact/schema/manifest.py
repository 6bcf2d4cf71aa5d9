"""The files of a delivered device: `manifest.json` and `measurements.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import FiniteFloat

from compiler.artifact.artifact import Artifact, Evidence
from compiler.artifact.schema.accuracy import Threshold
from compiler.artifact.schema.generation import GenerationFacts
from compiler.artifact.schema.kernels import Curve, Scheduled
from compiler.artifact.schema.ladder import DriftFigures, LadderFacts
from compiler.artifact.schema.parity import Latency, Verdict
from compiler.artifact.schema.pruning import Pruning
from compiler.artifact.schema.trial import Searched, StageDigest
from compiler.fleet.cut import Cut
from compiler.model.stats import GraphStats


@dataclass(frozen=True)
class File:
    """One delivered file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelFile:
    """The model that was read; `fixed` are inputs that became constants, `cut` says which part of it was built."""

    file: str
    sha256: str
    notes: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    cut: Cut | None = None


@dataclass(frozen=True)
class Samples:
    """What the build was probed, calibrated and verified with."""

    origin: str
    sha256: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """The labelled data that accuracy was judged on, and all that is needed to judge it again on others."""

    task: str
    metric: str
    origin: str
    sha256: str
    samples: int
    warnings: tuple[str, ...]
    options: Mapping[str, Any]
    preprocess: Mapping[str, Any] | None
    split: str = ""
    split_reason: str = ""


@dataclass(frozen=True)
class Profile:
    """The hardware profile that was built for."""

    name: str
    sha256: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """All that was given."""

    model: ModelFile
    samples: Samples
    profile: Profile
    evaluation: Evaluation | None


@dataclass(frozen=True)
class BorderModel(GraphStats):
    """The size of the border model, and its digest."""

    sha256: str


@dataclass(frozen=True)
class PassFacts:
    """What one pass did to the graph; a difference that is no finite number is its text (`inf`).

    `left_out` says why the pass was undone; empty where it was not.
    """

    number: int
    name: str
    modified: bool
    notes: tuple[str, ...]
    before: GraphStats
    after: GraphStats
    largest_difference: float | str | None
    sqnr_db: float | str | None
    not_measured: str
    left_out: str = ""


@dataclass(frozen=True)
class Manifest(Searched):
    """The manifest of a delivered device.

    Args:
        device: Name of the device class.
        fleetc: The version that built it.
        inputs: All that was given.
        source: Size of the imported model.
        border: Size of the border model, and its digest.
        passes: What each pass did, in order.
        verdict: The parity.
        artifact: What the device loads.
        files: File → its digest, but of those in `artifact.non_reproducible`.
        stages: The entries of the store it was made of.
        tuning: What each kernel is built with; none where the target cannot be tuned.
        pruning: What was cut out; None where nothing was.
        ladder: The builds that serve the device; None where the fleet file asks for none.
        drift: What the calibration data look like, for a server to compare with; None where nothing asks, or there
            are none.
        generation: What was seen of a language model; None of another model.
        threshold: Similarity that accepts a pair, of a fleet that is judged by verification; None of another.
    """

    device: str
    fleetc: str
    inputs: Inputs
    source: GraphStats
    border: BorderModel
    passes: tuple[PassFacts, ...]
    verdict: Verdict
    artifact: Artifact
    files: Mapping[str, File]
    stages: tuple[StageDigest, ...]
    tuning: tuple[Scheduled, ...]
    pruning: Pruning | None
    ladder: LadderFacts | None = None
    drift: DriftFigures | None = None
    generation: GenerationFacts | None = None
    threshold: Threshold | None = None


@dataclass(frozen=True)
class StageRun:
    """A stage of a build, and whether its result came from the store."""

    stage: str
    from_store: bool


@dataclass(frozen=True)
class Measurements:
    """What was observed when a device was built: what clock, load and store of that time have a part in.

    Args:
        evidence: Where the artifact ran.
        latency: Per set of sizes; none where nothing was timed.
        instructions: Guest instructions of one inference; None where nothing counts them.
        passes_ms: Name of a pass and its milliseconds, in order.
        seconds: Stage → wall seconds spent on it.
        stages: The stages, in order.
        tuning: The trials behind the choice of each kernel.
        non_reproducible_files: File whose bytes differ from build to build → its digest this time.
    """

    evidence: Evidence
    latency: tuple[Latency, ...]
    instructions: int | None
    passes_ms: tuple[tuple[str, FiniteFloat], ...] = ()
    seconds: Mapping[str, FiniteFloat] = field(default_factory=dict)
    stages: tuple[StageRun, ...] = ()
    tuning: tuple[Curve, ...] = ()
    non_reproducible_files: Mapping[str, File] = field(default_factory=dict)


UNMEASURED = Measurements(Evidence.NONE, (), None)
"""Of an artifact that nothing was observed of."""
