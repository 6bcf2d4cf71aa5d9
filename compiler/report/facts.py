"""What a report reads of manifests, as types: strict in what it needs, deaf to what it does not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from compiler.report.saliency_facts import Saliency

T = TypeVar("T")

Number = FiniteFloat | None


@dataclass(frozen=True)
class Choice:
    """One decision of the plan and its reason."""

    value: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a device must hold: points of the metric, percent less memory, milliseconds, correlation of maps."""

    accuracy_drop_pct: Number = None
    memory_reduction_pct: Number = None
    latency_ms: Number = None
    saliency_correlation_min: Number = None


@dataclass(frozen=True)
class PlannedGates:
    """The limits that hold, and where each is from."""

    limits: Limits = field(default_factory=Limits)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What was decided before anything was built."""

    profile: str
    target: str
    choices: Mapping[str, Choice]
    toolchain: Mapping[str, str]
    gates: PlannedGates = field(default_factory=PlannedGates)


@dataclass(frozen=True)
class Gate:
    """One limit and the verdict on it; `passed` is None where it was not judged."""

    name: str
    limit: FiniteFloat
    value: Number
    unit: str
    passed: bool | None
    evidence: str
    rule: str
    why: str = ""


@dataclass(frozen=True)
class Score:
    """A metric on a data set with its 95 % interval, in percent."""

    metric: str
    value_pct: Number
    low_pct: Number = None
    high_pct: Number = None
    count: int = 0


@dataclass(frozen=True)
class Accuracy:
    """What a trial lost against the float model, in points of the metric; what it was measured on."""

    evidence: str
    metric: str = ""
    drop_pct: Number = None
    low_pct: Number = None
    high_pct: Number = None
    judged_pct: Number = None
    rule: str = ""
    why: str = ""
    reference: Score | None = None
    candidate: Score | None = None
    measured_on: str = ""
    note: str = ""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a trial's weights on disk, and of its process when run."""

    weights_bytes: int | None
    weights_evidence: str
    run_bytes: int | None = None
    run_evidence: str = "none"
    why: str = ""


@dataclass(frozen=True)
class Speed:
    """A trial against the float original of the same target: both values in `unit`, smaller is faster."""

    speedup: Number
    unit: str
    evidence: str
    value: Number = None
    original: Number = None
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """One candidate that was made and measured."""

    number: int
    purpose: str
    precision: str
    status: str
    why: str
    kept_float: Mapping[str, str]
    accuracy: Accuracy | None
    footprint: Footprint | None
    speed: Speed | None
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Layer:
    """One operator of the artifact; `share` of the time is within 0..1."""

    node: str
    op: str
    precision: str
    why: str
    sqnr_db: Number
    share: FiniteFloat
    evidence: str
    kernel: str = ""


@dataclass(frozen=True)
class Decision:
    """The precision that is delivered (empty if none is), the trial it is from, and why."""

    precision: str
    reason: str
    trial: int | None = None


@dataclass(frozen=True)
class Searched:
    """What every device has that was searched for, delivered or not."""

    plan: Plan
    decision: Decision
    gates: tuple[Gate, ...]
    trials: tuple[Trial, ...]
    layers: tuple[Layer, ...] = ()
    saliency: Saliency | None = None


@dataclass(frozen=True)
class Counts:
    """The size of a graph; `macs` is None where an operator's are not known."""

    nodes: int
    parameters: int
    macs: int | None
    bytes: int = 0


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
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """One delivered file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Artifact:
    """What the device loads."""

    target: str
    precision: str
    files: tuple[str, ...]
    tools: Mapping[str, str]
    unrepeatable: Mapping[str, str]
    deferred: str


@dataclass(frozen=True)
class Parity:
    """Whether the artifact computes what its reference does."""

    status: str
    tolerance: str
    evidence: str
    reason: str
    points: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Verdict:
    """The parity, and what it was judged against."""

    parity: Parity
    reference: str


@dataclass(frozen=True)
class ModelFile:
    """The model that was read."""

    file: str
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """Samples of calibration, or labelled data."""

    origin: str
    sha256: str
    warnings: tuple[str, ...] = ()
    task: str = ""
    metric: str = ""
    samples: int = 0


@dataclass(frozen=True)
class Profile:
    """The hardware profile that was built for."""

    name: str
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """All that was given."""

    model: ModelFile
    samples: Data
    profile: Profile
    evaluation: Data | None = None


@dataclass(frozen=True)
class Manifest(Searched):
    """The manifest of a delivered device."""

    device: str = field(kw_only=True)
    inputs: Inputs = field(kw_only=True)
    source: Counts = field(kw_only=True)
    border: Counts = field(kw_only=True)
    passes: tuple[Pass, ...] = field(kw_only=True)
    verdict: Verdict = field(kw_only=True)
    artifact: Artifact = field(kw_only=True)
    files: Mapping[str, File] = field(kw_only=True)


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
class Measurements:
    """What was observed when a device was built."""

    evidence: str = "none"
    latency: tuple[Latency, ...] = ()
    instructions: int | None = None
    passes_ms: tuple[tuple[str, FiniteFloat], ...] = ()
    seconds: Mapping[str, FiniteFloat] = field(default_factory=dict)
    unrepeatable_files: Mapping[str, File] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a device was not delivered."""

    error: str
    exit_code: int
    what: str
    where: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Row:
    """What `build.json` says of one device."""

    status: Literal["delivered", "deferred", "failed"]
    manifest: str = ""
    error: Failure | None = None
    report: Searched | None = None


@dataclass(frozen=True)
class Summary:
    """`build.json`."""

    fleet: str
    fleetc: str
    model: str
    devices: Mapping[str, Row]


def parse(cls: type[T], value: Mapping[str, Any]) -> T:
    """A value as one of the types above.

    Raises:
        ValueError: It does not fit; the message names up to three keys.
    """
    try:
        found: T = TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError("; ".join(problems[:3]) + more) from error
    return found
