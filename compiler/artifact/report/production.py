"""What a server counted of a build, beside what was measured when it was made: read from a file of its `/metrics`.

A build is found by the digest of its manifest. Quantiles are the upper ends of the histogram's buckets. The limit of a
gate is one of these ends, so that the share above it is exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact.manifest import MANIFEST
from compiler.artifact.report.read import Build, Device
from compiler.artifact.report.rows import chosen_trial
from compiler.artifact.schema import GateName
from compiler.errors import DataError
from compiler.store import file_digest

LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)(?: \d+)?")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MIB = 1 << 20
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Sample:
    """One line of Prometheus' text format: a family's name, its labels, a number."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Comparison:
    """A figure as it was measured here, and as it is in production."""

    name: str
    here: str
    production: str


@dataclass(frozen=True)
class _Served:
    """The model and the variant that a build is served as, and all samples."""

    model: str
    variant: str
    samples: Sequence[Sample]

    def values(self, name: str, **labels: str) -> list[Sample]:
        """Samples of the model with these labels."""
        wanted = {"model": self.model, **labels}.items()
        return [sample for sample in self.samples if sample.name == name and wanted <= sample.labels.items()]


def read_metrics(path: Path) -> tuple[Sample, ...]:
    """Reads what `/metrics` gave.

    Raises:
        DataError: The file cannot be read, or is of another kind.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        matches = [match for line in lines if (match := LINE.fullmatch(line))]
        samples = [Sample(match[1], dict(LABEL.findall(match[2] or "")), float(match[3])) for match in matches]
    except (OSError, ValueError) as error:
        raise DataError(f"the metrics cannot be read: {error}", where=str(path), remedy=_SAVE) from error
    if not any(sample.name == "fleetc_build_info" for sample in samples):
        raise DataError("there is no fleetc_build_info in it", where=str(path), remedy=_SAVE)
    return tuple(samples)


_SAVE = "Save what `fleetc serve` gives under /metrics, for example with curl."


def compare_with_production(
    build: Build, samples: Sequence[Sample], *, where: str
) -> dict[str, tuple[Comparison, ...]]:
    """Device → what was measured here beside what is in production, for each that the metrics are of.

    Raises:
        DataError: The metrics are of none of the build's devices.
    """
    compared = {}
    for device in build.devices:
        manifest = build.folder / device.name / MANIFEST
        if device.manifest is not None and (served := _find(samples, file_digest(manifest))):
            compared[device.name] = tuple(_rows(device, served))
    if not compared:
        others = [sample.labels.get("manifest_sha256", "")[:16] for sample in samples if sample.name == _INFO]
        raise DataError(
            f"the metrics are of other builds: {', '.join(others)}",
            where=where,
            remedy="Name the build that was served.",
        )
    return compared


_INFO = "fleetc_build_info"


def _find(samples: Sequence[Sample], digest: str) -> _Served | None:
    infos = (sample.labels for sample in samples if sample.name == _INFO)
    found = next((labels for labels in infos if labels.get("manifest_sha256") == digest), None)
    return _Served(found["model"], found["variant"], samples) if found else None


def _rows(device: Device, served: _Served) -> list[Comparison]:
    latency = device.measurements.latency
    p50, p99 = (f"{latency[0].p50_ms:.3g} ms", f"{latency[0].p99_ms:.3g} ms") if latency else ("–", "–")
    rows = [
        Comparison("Requests", "–", _outcomes(served)),
        Comparison("Latency, median (here without waiting)", p50, _quantile(served, 0.5)),
        Comparison("Latency, p99 (here without waiting)", p99, _quantile(served, 0.99)),
    ]
    for gate in device.manifest.gates if device.manifest else ():
        if gate.name == GateName.LATENCY:
            here = "–" if gate.value is None else f"{gate.value:.3g} ms, limit {gate.limit:g} ms"
            rows.append(Comparison("Latency gate, of the median", here, _above(served, gate.limit / 1e3)))
    trial = chosen_trial(device)
    run_bytes = trial.footprint.run_bytes if trial and trial.footprint else None
    resident = served.values("fleetc_build_resident_memory_bytes", variant=served.variant)
    here = "–" if run_bytes is None else f"{run_bytes / MIB:.1f} MiB"
    rows.append(Comparison("Memory when run", here, f"{resident[0].value / MIB:.1f} MiB" if resident else "–"))
    outside = [sample.value for sample in served.values("fleetc_input_out_of_range_ratio")]
    rows.append(Comparison("Inputs out of the calibration's range", "–", f"{max(outside):.2%}" if outside else "–"))
    return rows


def _outcomes(served: _Served) -> str:
    counts: dict[str, float] = {}
    for sample in served.values("fleetc_requests_total"):
        counts[sample.labels["outcome"]] = counts.get(sample.labels["outcome"], 0) + sample.value
    total = sum(counts.values())
    parts = [f"{outcome} {count / total:.2%}" for outcome, count in sorted(counts.items()) if count] if total else []
    return f"{total:,.0f}{': ' if parts else ''}{', '.join(parts)}"


def _buckets(served: _Served) -> list[tuple[float, float]]:
    samples = served.values("fleetc_request_duration_seconds_bucket")
    return sorted((float(sample.labels["le"]), sample.value) for sample in samples)


def _quantile(served: _Served, share: float) -> str:
    buckets = _buckets(served)
    total = buckets[-1][1] if buckets else 0
    if not total:
        return "–"
    end = next(end for end, count in buckets if count >= share * total)
    return f"at most {1e3 * end:g} ms" if math.isfinite(end) else f"above {1e3 * buckets[-2][0]:g} ms"


def _above(served: _Served, limit_s: float) -> str:
    buckets = _buckets(served)
    total = buckets[-1][1] if buckets else 0
    below = next((count for end, count in buckets if math.isclose(end, limit_s)), None)
    if not total or below is None:
        return "–"
    return f"{(total - below) / total:.2%} of {total:,.0f} requests above it"
