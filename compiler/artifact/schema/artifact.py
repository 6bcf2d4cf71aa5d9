"""What a delivered device has beside: inputs, graphs, passes, files, parity, and what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import FiniteFloat


@dataclass(frozen=True)
class Spec:
    """An input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Artifact:
    """What the device loads."""

    target: str
    precision: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    files: tuple[str, ...]
    tools: Mapping[str, str]
    facts: Mapping[str, Any]
    non_reproducible: Mapping[str, str]
    deferred: str


@dataclass(frozen=True)
class File:
    """One delivered file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelFile:
    """The model that was read."""

    file: str
    sha256: str
    notes: tuple[str, ...]


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
    options: Mapping[str, Any]
    preprocess: Mapping[str, Any] | None
    samples: int = 0
    warnings: tuple[str, ...] = ()


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
class Counts:
    """The size of a graph; `macs` is None where an operator's are not known."""

    nodes: int
    parameters: int
    macs: int | None
    bytes: int


@dataclass(frozen=True)
class Border(Counts):
    """The border model."""

    sha256: str


@dataclass(frozen=True)
class Pass:
    """What one pass did to the graph."""

    number: int
    name: str
    modified: bool
    before: Counts
    after: Counts
    largest_difference: float | str | None
    not_measured: str
    notes: tuple[str, ...]
    left_out: str = ""


@dataclass(frozen=True)
class Exact:
    """An output that is equal to the bit."""

    elements: int
    exact: Literal[True]


@dataclass(frozen=True)
class Difference:
    """How far an output is from its reference."""

    elements: int
    sqnr_db: float
    cosine: float
    worst_abs: float


@dataclass(frozen=True)
class Point:
    """The outputs at one set of sizes."""

    sizes: str
    outputs: Mapping[str, Exact | Difference]


@dataclass(frozen=True)
class Parity:
    """Whether the artifact computes what its reference does."""

    status: str
    tolerance: str
    evidence: str
    reason: str
    points: tuple[Point, ...]

    @property
    def worst_sqnr_db(self) -> float | None:
        """Over sizes and outputs; None where everything is equal or nothing ran."""
        found = (one for point in self.points for one in point.outputs.values())
        return min((one.sqnr_db for one in found if isinstance(one, Difference)), default=None)


@dataclass(frozen=True)
class Verdict:
    """The parity of the artifact, what it was judged against, the border model's own, and where both say little."""

    parity: Parity
    reference: Literal["imported model", "border model"]
    border: Parity | None = None
    weak_proofs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """What one kernel is built with, and the record that says so."""

    kernel: str
    workload: str
    count: int
    choice: Mapping[str, Any]
    basis: str
    evidence: str
    reason: str


@dataclass(frozen=True)
class Latency:
    """Milliseconds of an artifact's runs at one size."""

    sizes: str
    runs: int
    p50_ms: FiniteFloat
    p90_ms: FiniteFloat
    p99_ms: FiniteFloat
    items_per_s: FiniteFloat


@dataclass(frozen=True)
class Curve:
    """The trials of one kernel, in the order of the tuning log; None for one that failed."""

    kernel: str
    count: int
    unit: str
    evidence: str
    values: tuple[FiniteFloat | None, ...]


@dataclass(frozen=True)
class Measurements:
    """What was observed when a device was built."""

    evidence: str
    latency: tuple[Latency, ...]
    instructions: int | None
    non_reproducible_files: Mapping[str, File]
    passes_ms: tuple[tuple[str, FiniteFloat], ...] = ()
    seconds: Mapping[str, FiniteFloat] = field(default_factory=dict)
    tuning: tuple[Curve, ...] = ()


UNMEASURED = Measurements("none", (), None, {})
"""Of an artifact that nothing was observed of."""
