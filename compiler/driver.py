"""The straight line: a fleet file in, one verified artifact per device class out; nothing loops back."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compiler.artifact import Artifact
from compiler.bisect import explain_divergence
from compiler.build import Built, build_artifact
from compiler.disk import output_errors
from compiler.errors import CompilerError, FleetFailed, GateFailed, OutputError
from compiler.fleet import DeviceClass, Fleet
from compiler.frontend import Imported, read_model
from compiler.inputs import Prepared, VerificationInputs, prepare
from compiler.jobs import Job, plan_fleet, selected_devices
from compiler.manifest import MANIFEST, write_artifact, write_json
from compiler.numerics import arrays_digest
from compiler.passes.instrument import measure
from compiler.plan import BuildOptions, Plan
from compiler.portable import Border, dump_passes, make_border
from compiler.profile import to_dict
from compiler.store import Store, file_digest
from compiler.verify import Point, Verdict, reference_points, verdict_to_dict, verify_artifact

BUILD = "build.json"

log = logging.getLogger("fleetc.build")


@dataclass(frozen=True)
class Source:
    """The model as it was read, the digest of its file, and what each device's build starts from."""

    imported: Imported
    digest: str
    prepared: Mapping[str, Prepared]


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
    """

    device: str
    status: str
    folder: Path
    error: CompilerError | None = None
    plan: Plan | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FleetReport:
    """What became of the fleet, device by device, and the notes on how its model was read."""

    out: Path
    devices: tuple[DeviceReport, ...]
    notes: tuple[str, ...] = ()

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


def build_fleet(path: Path, options: BuildOptions) -> FleetReport:
    """Builds, verifies and delivers every device class of a fleet file.

    Raises:
        UsageError: The fleet file cannot be obeyed, data do not fit the model, or the output folder cannot be written;
            nothing was built.
        ModelError: The model is not valid; nothing was built.
    """
    fleet, jobs, missing = plan_fleet(path, options)
    _claim(options.out, selected_devices(fleet, options))
    source = _read_source(fleet, [job.device for job in jobs])
    store = Store(options.cache)
    reports = {name: DeviceReport(name, "failed", options.out / name, error) for name, error in missing.items()}
    started = time.monotonic()
    for index, job in enumerate(jobs):
        log.info("%s (%d of %d)%s", job.device.name, index + 1, len(jobs), _eta(started, index, len(jobs)))
        reports[job.device.name] = _attempt(job, fleet, source, options, store)
    ordered = tuple(reports[device.name] for device in selected_devices(fleet, options))
    _settle(ordered, fleet, source.digest, options.out)
    return FleetReport(options.out, ordered, source.imported.notes)


def compile_device(job: Job, fleet: Fleet, source: Source, options: BuildOptions, store: Store) -> DeviceReport:
    """The whole line for one device class.

    Raises:
        CompilerError: Whatever stopped it; nothing was delivered.
    """
    seconds: dict[str, float] = {}
    passes = job.target.passes(job.profile)
    ready = source.prepared[job.device.name]
    if options.dump_passes:
        dump_passes(ready.model, job.plan, passes, options.dump_passes / job.device.name)
    with _timed(seconds, "passes"):
        border = make_border(ready.model, ready.digest, job.plan, passes, inputs=ready.inputs.probe, store=store)
    with _timed(seconds, "build"):
        built = build_artifact(border, job.plan, job.profile, job.target, store=store, limits=options.child)
    with _timed(seconds, "reference"):
        points = reference_points(ready.model, ready.digest, ready.inputs.points, store)
    with _timed(seconds, "verify"):
        verdict = _verify(job, border, built, points, options, store)
    folder = options.out / job.device.name
    with _timed(seconds, "deliver"):
        facts = _facts(job, fleet, source, border, built, verdict)
        measured = _measurements(border, built, verdict, seconds)
        write_artifact(built.artifact, border, facts=facts, measurements=measured, folder=folder)
    status = "deferred" if built.artifact.deferred else "delivered"
    return DeviceReport(job.device.name, status, folder, None, job.plan, _row(facts, built.artifact, verdict), seconds)


def _read_source(fleet: Fleet, devices: Sequence[DeviceClass]) -> Source:
    imported = read_model(fleet.model)
    prepared = prepare(fleet, imported.model, devices)
    return Source(imported, file_digest(fleet.model), prepared)


def _attempt(job: Job, fleet: Fleet, source: Source, options: BuildOptions, store: Store) -> DeviceReport:
    try:
        return compile_device(job, fleet, source, options, store)
    except CompilerError as error:
        log.error("%s failed: %s", job.device.name, error.what.splitlines()[0])
        return DeviceReport(job.device.name, "failed", options.out / job.device.name, error, job.plan)


def _verify(
    job: Job, border: Border, built: Built, points: Sequence[Point], options: BuildOptions, store: Store
) -> Verdict:
    try:
        return verify_artifact(
            built.artifact,
            built.entry.digest,
            points,
            tolerance=job.plan.tolerance,
            repeat=options.repeat,
            where=f"{job.device.name}: verify",
            store=store,
            limits=options.child,
        )
    except GateFailed as error:
        log.info("%s: looking for the first operator that diverges", job.device.name)
        error.what += "\n" + explain_divergence(border.load(), points, job.plan, job.profile, limits=options.child)
        raise


def _facts(job: Job, fleet: Fleet, source: Source, border: Border, built: Built, verdict: Verdict) -> dict[str, Any]:
    """The manifest's sections: nothing in them depends on the folder, the clock or the load of the machine."""
    stages = [*border.entries, built.entry]
    ready = source.prepared[job.device.name]
    return {
        "device": job.device.name,
        "inputs": {
            "model": {"file": fleet.model.name, "sha256": source.digest, "notes": list(source.imported.notes)},
            "samples": {
                "origin": _origin(fleet, ready.inputs),
                "sha256": arrays_digest(ready.inputs.probe),
                "warnings": list(ready.inputs.warnings),
            },
            "profile": {"name": job.profile.name, "sha256": job.plan.profile_digest, "facts": to_dict(job.profile)},
        },
        "source": vars(measure(ready.model)),
        "border": vars(measure(border.load())) | {"sha256": border.digest},
        "plan": job.plan.to_dict(),
        "passes": [{key: value for key, value in record.items() if key != "milliseconds"} for record in border.records],
        "stages": [{"stage": entry.stage, "sha256": entry.digest} for entry in stages],
        "verdict": {"parity": _without(verdict_to_dict(verdict), "latency", "instructions")},
    }


def _measurements(border: Border, built: Built, verdict: Verdict, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "evidence": str(verdict.evidence),
        "latency": list(verdict.latency),
        "instructions": verdict.instructions,
        "passes_ms": [[record["name"], record["milliseconds"]] for record in border.records],
        "stages": [{"stage": entry.stage, "from_store": entry.hit} for entry in (*border.entries, built.entry)],
        "seconds": dict(seconds),
    }


def _origin(fleet: Fleet, inputs: VerificationInputs) -> str:
    """Where the samples are from, in words that are the same in every folder."""
    return fleet.calibration.path.name if fleet.calibration else inputs.origin


def _row(facts: Mapping[str, Any], artifact: Artifact, verdict: Verdict) -> dict[str, Any]:
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


def _claim(out: Path, devices: Sequence[DeviceClass]) -> None:
    """The output folder must be writable before an hour of building, not after, and what is replaced must be ours."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"?")
        foreign = [out / one.name for one in devices if _is_foreign(out / one.name)]
    if foreign:
        raise OutputError(
            f"no artifact of fleetc is in {', '.join(map(str, foreign))}, and a build would replace it",
            where=str(out),
            remedy="Choose another --out, or move it away.",
        )


def _is_foreign(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists() or folder.is_symlink()
    return not (folder / MANIFEST).is_file() and any(folder.iterdir())


def _settle(reports: Sequence[DeviceReport], fleet: Fleet, model_digest: str, out: Path) -> None:
    """A failed device leaves no artifact of an earlier build behind; `build.json` says what is there."""
    with output_errors(out):
        for report in reports:
            if report.error:
                shutil.rmtree(report.folder, ignore_errors=True)
        devices = _others(fleet, out) | {report.device: _summary(report) for report in reports}
        ordered = {name: devices[name] for name in fleet.devices if name in devices}
        summary = {
            "schema": 1,
            "fleetc": version("fleetc"),
            "fleet": fleet.path.name,
            "model": model_digest,
        }
        write_json(out / BUILD, {**summary, "devices": ordered})


def _others(fleet: Fleet, out: Path) -> dict[str, Any]:
    """What an earlier build said of devices that this one was not asked for and that are still what it said."""
    try:
        devices = json.loads((out / BUILD).read_bytes())["devices"]
        return {name: row for name, row in devices.items() if name in fleet.devices and _still(out / name, row)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or none of ours: nothing to keep
        return {}


def _still(folder: Path, row: Mapping[str, Any]) -> bool:
    manifest = folder / MANIFEST
    return file_digest(manifest) == row.get("manifest") if manifest.is_file() else row["status"] == "failed"


def _summary(report: DeviceReport) -> dict[str, Any]:
    if report.error:
        return {"status": report.status, "error": report.error.to_dict()}
    return {"status": report.status, "manifest": file_digest(report.folder / MANIFEST)}


def _eta(started: float, done: int, total: int) -> str:
    left = (time.monotonic() - started) / done * (total - done) if done else 0.0
    return f", about {left:.0f} s left" if left > 5 else ""


def _without(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 3)
