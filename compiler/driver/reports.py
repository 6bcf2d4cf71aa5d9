"""What a build says of itself: the values it returns, and the manifest and the measurements of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compiler.artifact import Artifact
from compiler.artifact.adapter import parse
from compiler.artifact.schema import (
    BorderModel,
    DeviceStatus,
    Evaluation,
    Inputs,
    Manifest,
    Measurements,
    ModelFile,
    PassFacts,
    Profile,
    Pruning,
    Samples,
    Searched,
    Selection,
    StageDigest,
    StageRun,
    Verdict,
)
from compiler.driver.search.search import BuiltCandidate, SearchResult, read_pruning
from compiler.driver.stages.data import Data
from compiler.driver.stages.inputs import BuildStart, VerificationInputs
from compiler.driver.stages.verify import Verification
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
    prepared: Mapping[str, BuildStart]
    data: Mapping[str, Data]


@dataclass(frozen=True)
class DeviceReport:
    """What became of one device class.

    Args:
        device: Its name.
        folder: Where its artifact is.
        error: Why it failed; None otherwise.
        plan: Its plan; None if none could be made.
        row: Figures for a table: precision, bytes, nodes before and after, worst SQNR, latency, instructions, evidence.
        seconds: Stage → wall seconds spent on it now; 0 where it came from the store.
        searched: Of a device that failed a gate: its plan, every trial and every gate's figures.
        is_deferred: Whether its device must finish it.
    """

    device: str
    folder: Path
    error: CompilerError | None = None
    plan: Plan | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    searched: Searched | None = None
    is_deferred: bool = False

    @property
    def status(self) -> DeviceStatus:
        """What became of it."""
        if self.error:
            return DeviceStatus.FAILED
        return DeviceStatus.DEFERRED if self.is_deferred else DeviceStatus.DELIVERED


@dataclass(frozen=True)
class FleetReport:
    """What became of the fleet, device by device, the notes on how its model was read, and the report's page."""

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
    job: Job, folder: Path, made: BuiltCandidate, manifest: Manifest, seconds: Mapping[str, float]
) -> DeviceReport:
    """What a delivered device's report says."""
    artifact = made.built.artifact
    return DeviceReport(
        job.device.name,
        folder,
        plan=made.plan,
        row=table_row(manifest, artifact, made.verdict),
        seconds=dict(seconds),
        is_deferred=bool(artifact.deferred),
    )


def failed_report(job: Job, folder: Path, result: SearchResult) -> DeviceReport:
    """The report of a device that no candidate passes the gates of: nothing is delivered, every figure is kept."""
    return DeviceReport(job.device.name, folder, result.error, job.plan, searched=_searched(job.plan, result))


def manifest_facts(job: Job, fleet: Fleet, source: Source, made: BuiltCandidate, result: SearchResult) -> Manifest:
    """The manifest: nothing in it depends on the folder, the clock or the load of the machine, but what the search
    measured and kept in the store."""
    border, pruning = made.border, read_pruning(made.entries)
    return Manifest(
        **vars(_searched(made.plan, result)),
        device=job.device.name,
        fleetc=version("fleetc"),
        inputs=_inputs(job, fleet, source),
        source=measure(source.prepared[job.device.name].model),
        border=BorderModel(**vars(measure(border.load())), sha256=border.digest),
        passes=tuple(parse(PassFacts, record) for record in border.records),
        verdict=Verdict(made.verdict.parity, made.reference, made.border_parity, made.weak_proofs),
        artifact=made.built.artifact,
        files={},  # known once they are copied: `write_artifact` adds them
        stages=tuple(StageDigest(entry.stage, entry.digest) for entry in made.entries),
        tuning=made.kernels,
        pruning=parse(Pruning, pruning) if pruning else None,
        generation=result.generation,
    )


def _searched(plan: Plan, result: SearchResult) -> Searched:
    """What was tried, what was measured, and what was selected."""
    chosen = result.chosen
    return Searched(
        plan=plan.facts,
        decision=Selection(
            precision=chosen.precision if chosen else "",
            trial=chosen.number if chosen else None,
            reason=plan.reason if result.made else str(result.error),
        ),
        gates=chosen.gates if chosen else (),
        trials=tuple(trial.facts for trial in result.trials),
        layers=result.layers,
        saliency=result.saliency,
        contest=result.contest,
        final_races=result.final_races,
    )


def _inputs(job: Job, fleet: Fleet, source: Source) -> Inputs:
    ready = source.prepared[job.device.name]
    inputs, notes = ready.inputs, (*source.imported.notes, *ready.notes)
    return Inputs(
        model=ModelFile(fleet.model.name, source.digest, notes, dict(job.device.inputs), fleet.cut),
        samples=Samples(_origin(fleet, inputs), arrays_digest(inputs.probe), inputs.warnings),
        profile=Profile(job.profile.name, job.plan.profile_digest, to_dict(job.whole_profile)),
        evaluation=_evaluation(source.data[job.device.name], fleet),
    )


def _evaluation(data: Data, fleet: Fleet) -> Evaluation | None:
    """What accuracy was judged on, and all that is needed to judge it again on other data."""
    judge = data.judge
    if judge is None:
        return None
    options = asdict(fleet.evaluation) if fleet.evaluation else {}
    return Evaluation(
        task=judge.task.name,
        metric=judge.task.metric,
        origin=judge.dataset.origin,
        sha256=judge.dataset.digest,
        samples=judge.dataset.count,
        warnings=judge.warnings,
        options={key: options[key] for key in ("output", "far", "rule") if key in options},
        preprocess=asdict(fleet.preprocess) if fleet.preprocess else None,
        split=str(judge.split.kind) if judge.split else "",
        split_reason=judge.split.why if judge.split else "",
    )


def measured_facts(made: BuiltCandidate, seconds: Mapping[str, float]) -> Measurements:
    """What the clock, the load and the store of this time have a part in."""
    return Measurements(
        evidence=made.verdict.evidence,
        latency=made.verdict.latency,
        instructions=made.verdict.instructions,
        passes_ms=tuple((record["name"], record["milliseconds"]) for record in made.border.records),
        seconds=dict(seconds),
        stages=tuple(StageRun(entry.stage, entry.hit) for entry in made.entries),
        tuning=made.curves,
    )


def _origin(fleet: Fleet, inputs: VerificationInputs) -> str:
    """Where the samples are from, in words that are the same in every folder."""
    return fleet.calibration.path.name if fleet.calibration else inputs.origin


def table_row(manifest: Manifest, artifact: Artifact, verification: Verification) -> dict[str, Any]:
    """The figures of one device in the fleet's table."""
    parity, latency = verification.parity, verification.latency
    return {
        "target": artifact.target,
        "precision": artifact.precision,
        "bytes": sum((artifact.root / name).stat().st_size for name in artifact.files if name.startswith("payload/")),
        "nodes_before": manifest.source.nodes,
        "nodes_after": manifest.border.nodes,
        "parity": str(parity.status),
        "sqnr_db": parity.worst_sqnr_db,
        "p50_ms": latency[0].p50_ms if latency else None,
        "instructions": verification.instructions,
        "evidence": str(parity.evidence),
        "reason": parity.reason,
    }
