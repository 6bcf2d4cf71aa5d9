"""What a build says of itself: the values it returns, and the sections of an artifact's manifest and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.artifact import Artifact
from compiler.driver.search.search import Found, Made, read_pruning
from compiler.driver.stages.data import Data
from compiler.driver.stages.inputs import Prepared, VerificationInputs
from compiler.driver.stages.verify import Verdict, verdict_facts, verdict_measurements
from compiler.errors import CompilerError, FleetFailed
from compiler.fleet import Fleet
from compiler.fleet.profile import to_dict
from compiler.model.frontend import Imported
from compiler.model.numerics import arrays_digest
from compiler.passes.instrument import measure
from compiler.plan import Plan
from compiler.plan.jobs import Job


@dataclass(frozen=True)
class Source:
    """The model as it was read, the digest of its file, and what each device's build starts from and is judged on."""

    imported: Imported
    digest: str
    prepared: Mapping[str, Prepared]
    data: Mapping[str, Data]


@dataclass(frozen=True)
class DeviceReport:
    """What became of one device class.

    Args:
        device: Its name.
        status: `delivered`, `deferred` or `failed`.
        folder: Where its artifact is.
        error: Why it failed; None otherwise.
        plan: Its plan; None if none could be made.
        row: Figures for a table: precision, bytes, nodes before and after, worst SQNR, latency, instructions, evidence.
        seconds: Stage → wall seconds spent on it now; 0 where it came from the store.
        facts: Of a device that failed a gate: its plan, every trial and every gate's figures.
    """

    device: str
    status: str
    folder: Path
    error: CompilerError | None = None
    plan: Plan | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FleetReport:
    """What became of the fleet, device by device, the notes on how its model was read, and the page that tells it."""

    out: Path
    devices: tuple[DeviceReport, ...]
    notes: tuple[str, ...] = ()
    page: Path | None = None

    def raise_failures(self) -> None:
        """Raises one error naming every device that failed: FleetFailed, or the first one's class if none was left."""
        failed = {device.device: device.error for device in self.devices if device.error}
        if not failed:
            return
        if len(self.devices) == 1:
            raise next(iter(failed.values()))
        lines = "\n".join(f"  - {name}: {error}".replace("\n", "\n    ") for name, error in failed.items())
        all_failed = len(failed) == len(self.devices)
        cls = type(next(iter(failed.values()))) if all_failed else FleetFailed
        raise cls(f"{len(failed)} of {len(self.devices)} devices failed:\n{lines}", where=str(self.out))


def delivered_report(
    job: Job, folder: Path, made: Made, facts: Mapping[str, Any], seconds: Mapping[str, float]
) -> DeviceReport:
    """What a delivered device's report says."""
    artifact = made.built.artifact
    status = "deferred" if artifact.deferred else "delivered"
    row = table_row(facts, artifact, made.verdict)
    return DeviceReport(job.device.name, status, folder, None, made.plan, row, dict(seconds))


def failed_report(job: Job, folder: Path, found: Found) -> DeviceReport:
    """The report of a device that no candidate passes the gates of: nothing is delivered, every figure is kept."""
    facts = {"plan": job.plan.to_dict(), **search_facts(found)}
    return DeviceReport(job.device.name, "failed", folder, found.error, job.plan, facts=facts)


def manifest_facts(job: Job, fleet: Fleet, source: Source, made: Made, found: Found) -> dict[str, Any]:
    """The manifest's sections: nothing in them depends on the folder, the clock or the load of the machine, but what
    the search measured and kept in the store."""
    ready = source.prepared[job.device.name]
    border = made.border
    return {
        "device": job.device.name,
        "inputs": {
            "model": {"file": fleet.model.name, "sha256": source.digest, "notes": list(source.imported.notes)},
            "samples": {
                "origin": _origin(fleet, ready.inputs),
                "sha256": arrays_digest(ready.inputs.probe),
                "warnings": list(ready.inputs.warnings),
            },
            "evaluation": _evaluation(source.data[job.device.name], fleet),
            "profile": {"name": job.profile.name, "sha256": job.plan.profile_digest, "facts": to_dict(job.profile)},
        },
        "source": vars(measure(ready.model)),
        "border": vars(measure(border.load())) | {"sha256": border.digest},
        "plan": made.plan.to_dict(),
        "pruning": read_pruning(made.entries),
        "passes": [{key: value for key, value in record.items() if key != "milliseconds"} for record in border.records],
        "stages": [{"stage": entry.stage, "sha256": entry.digest} for entry in made.entries],
        "tuning": [kernel.to_dict() for kernel in made.kernels],
        "verdict": {
            "parity": verdict_facts(made.verdict),
            "reference": made.reference,
            "border": verdict_facts(made.border_verdict),
            "weak_proofs": list(made.weak_proofs),
        },
        **search_facts(found),
    }


def _evaluation(data: Data, fleet: Fleet) -> dict[str, Any] | None:
    """What accuracy was judged on, and all that is needed to judge it again on other data."""
    if data.judge is None:
        return None
    options = asdict(fleet.evaluation) if fleet.evaluation else {}
    kept = {key: options[key] for key in ("output", "far", "rule") if key in options}
    return {
        **data.judge.to_dict(),
        "options": kept,
        "preprocess": asdict(fleet.preprocess) if fleet.preprocess else None,
    }


def search_facts(found: Found) -> dict[str, Any]:
    """What was tried, what was found, and what was decided."""
    chosen = found.chosen
    return {
        "decision": {
            "precision": chosen.precision if chosen else "",
            "trial": chosen.number if chosen else None,
            "reason": found.made.plan.reason if found.made else str(found.error),
        },
        "gates": [gate.to_dict() for gate in chosen.gates] if chosen else [],
        "trials": [trial.to_dict() for trial in found.trials],
        "layers": [layer.to_dict() for layer in found.layers],
        "saliency": found.saliency.to_report() if found.saliency else None,
    }


def measured_facts(made: Made, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Sections of `measurements.json`: what the clock, the load and the store of this time have a part in."""
    return {
        **verdict_measurements(made.verdict),
        "passes_ms": [[record["name"], record["milliseconds"]] for record in made.border.records],
        "stages": [{"stage": entry.stage, "from_store": entry.hit} for entry in made.entries],
        "seconds": dict(seconds),
        "tuning": [asdict(curve) for curve in made.curves],
    }


def _origin(fleet: Fleet, inputs: VerificationInputs) -> str:
    """Where the samples are from, in words that are the same in every folder."""
    return fleet.calibration.path.name if fleet.calibration else inputs.origin


def table_row(facts: Mapping[str, Any], artifact: Artifact, verdict: Verdict) -> dict[str, Any]:
    """The figures of one device in the fleet's table."""
    sqnr = [one.get("sqnr_db") for point in verdict.points for one in point["outputs"].values() if "sqnr_db" in one]
    return {
        "target": artifact.target,
        "precision": artifact.precision,
        "bytes": sum((artifact.root / name).stat().st_size for name in artifact.files if name.startswith("payload/")),
        "nodes_before": facts["source"]["nodes"],
        "nodes_after": facts["border"]["nodes"],
        "parity": verdict.status,
        "sqnr_db": min(sqnr, default=None),
        "p50_ms": verdict.latency[0]["p50_ms"] if verdict.latency else None,
        "instructions": verdict.instructions,
        "evidence": str(verdict.evidence),
        "reason": verdict.reason,
    }
