"""What of a manifest is read again after delivery, as types: a manifest is a file that anybody may have edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

MAX_PROBLEMS = 5
"""Problems shown of a manifest that does not fit: more would say nothing new."""


@dataclass(frozen=True)
class _Spec:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class _Artifact:
    target: str
    precision: str
    inputs: tuple[_Spec, ...]
    outputs: tuple[_Spec, ...]
    files: tuple[str, ...]
    tools: dict[str, str]
    facts: dict[str, Any]
    unrepeatable: dict[str, str]
    deferred: str


@dataclass(frozen=True)
class _File:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class _Sizes:
    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class _Choice:
    value: str
    reason: str


@dataclass(frozen=True)
class _Choices:
    precision: _Choice
    tolerance: _Choice
    threads: _Choice


@dataclass(frozen=True)
class _Limits:
    accuracy_drop_pct: float | None = None
    memory_reduction_pct: float | None = None
    latency_ms: float | None = None
    saliency_correlation_min: float | None = None


@dataclass(frozen=True)
class _PlannedGates:
    limits: _Limits


@dataclass(frozen=True)
class _Plan:
    profile: str
    dims: dict[str, _Sizes]
    choices: _Choices
    gates: _PlannedGates


@dataclass(frozen=True)
class _Profile:
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Evaluation:
    task: str
    metric: str
    options: dict[str, Any]
    preprocess: dict[str, Any] | None


@dataclass(frozen=True)
class _Inputs:
    profile: _Profile
    evaluation: _Evaluation | None


@dataclass(frozen=True)
class _Measure:
    nodes: int
    parameters: int
    bytes: int
    macs: int | None


@dataclass(frozen=True)
class _Border(_Measure):
    sha256: str


@dataclass(frozen=True)
class _Stats:
    elements: int
    exact: Literal[True]


@dataclass(frozen=True)
class _Difference:
    elements: int
    sqnr_db: float
    cosine: float
    worst_abs: float


@dataclass(frozen=True)
class _Point:
    sizes: str
    outputs: dict[str, _Stats | _Difference]


@dataclass(frozen=True)
class _Parity:
    status: str
    tolerance: str
    evidence: str
    reason: str
    points: tuple[_Point, ...]


@dataclass(frozen=True)
class _Verdict:
    parity: _Parity
    reference: Literal["imported model", "border model"]


@dataclass(frozen=True)
class _Counts:
    nodes: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class _Record:
    number: int
    name: str
    modified: bool
    before: _Counts
    after: _Counts
    largest_difference: float | str | None
    not_measured: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Gate:
    name: str
    limit: float
    value: float | None
    unit: str
    passed: bool | None
    evidence: str
    rule: str
    why: str


@dataclass(frozen=True)
class _Trial:
    number: int
    purpose: str
    precision: str
    status: str
    why: str
    kept_float: dict[str, str]
    accuracy: dict[str, Any] | None
    footprint: dict[str, Any] | None
    speed: dict[str, Any] | None
    gates: tuple[_Gate, ...]


@dataclass(frozen=True)
class _Layer:
    node: str
    op: str
    precision: str
    why: str
    sqnr_db: float | None
    share: float
    evidence: str
    kernel: str


@dataclass(frozen=True)
class _Saliency:
    correlation: float | None
    lowest_correlation: float | None
    images: int
    evidence: str
    note: str

    def __post_init__(self) -> None:
        if (self.correlation is None) != (self.lowest_correlation is None):
            raise ValueError("one correlation is there without the other")


@dataclass(frozen=True)
class _Decision:
    precision: str
    reason: str


@dataclass(frozen=True)
class _Manifest:
    device: str
    artifact: _Artifact
    files: dict[str, _File]
    inputs: _Inputs
    plan: _Plan
    source: _Measure
    border: _Border
    passes: tuple[_Record, ...]
    verdict: _Verdict
    decision: _Decision
    gates: tuple[_Gate, ...]
    trials: tuple[_Trial, ...]
    layers: tuple[_Layer, ...]
    saliency: _Saliency | None = None


@dataclass(frozen=True)
class _Latency:
    sizes: str
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    items_per_s: float


@dataclass(frozen=True)
class _Measurements:
    evidence: str
    latency: tuple[_Latency, ...]
    instructions: int | None
    unrepeatable_files: dict[str, _File]


def manifest_problems(manifest: Mapping[str, Any]) -> list[str]:
    """What a manifest lacks or misspells, by dotted key; empty if everything that is read again is there."""
    return _problems(_manifest(), manifest)


def measurements_problems(measurements: Mapping[str, Any]) -> list[str]:
    """The same of `measurements.json`."""
    return _problems(_measurements(), measurements)


def _problems(adapter: TypeAdapter[Any], value: Mapping[str, Any]) -> list[str]:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        return found[:MAX_PROBLEMS] + ([f"and {len(found) - MAX_PROBLEMS} more"] if len(found) > MAX_PROBLEMS else [])
    return []


@cache
def _manifest() -> TypeAdapter[_Manifest]:
    return TypeAdapter(_Manifest)


@cache
def _measurements() -> TypeAdapter[_Measurements]:
    return TypeAdapter(_Measurements)
