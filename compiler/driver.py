"""The straight line: a fleet file in, one verified artifact per device class out; nothing loops back."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact import Artifact
from compiler.bisect import explain_divergence
from compiler.build import Built, build_artifact
from compiler.errors import CompilerError, FleetError, FleetFailed, GateFailed, MissingError, UsageError, combine
from compiler.fleet import DeviceClass, Fleet, load_fleet, refuse_limits
from compiler.frontend import Imported, read_model
from compiler.inputs import VerificationInputs, bind_device, verification_inputs
from compiler.manifest import MANIFEST, write_artifact, write_json
from compiler.numerics import arrays_digest
from compiler.passes.instrument import measure
from compiler.plan import BuildOptions, Plan, make_plan
from compiler.portable import Border, dump_passes, make_border
from compiler.profile import HardwareProfile, load_profile, to_dict
from compiler.store import Store, file_digest, output_errors
from compiler.target import Target, find_target
from compiler.verify import Point, Verdict, reference_points, verdict_to_dict, verify_artifact

log = logging.getLogger("fleetc.build")


@dataclass(frozen=True)
class Job:
    """One device class, with everything that was decided for it."""

    device: DeviceClass
    profile: HardwareProfile
    target: Target
    plan: Plan


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
        """Raises the one device's error, or FleetFailed naming all, if any failed."""
        failed = [device for device in self.devices if device.error]
        if not failed:
            return
        if len(self.devices) == len(failed) and len({device.error.exit_code for device in failed if device.error}) == 1:
            raise combine([device.error for device in failed if device.error])
        lines = "\n".join(f"  - {device.device}: {device.error}".replace("\n", "\n    ") for device in failed)
        raise FleetFailed(f"{len(failed)} of {len(self.devices)} devices failed:\n{lines}", where=str(self.out))


def plan_fleet(path: Path, options: BuildOptions) -> tuple[Fleet, tuple[Job, ...], dict[str, MissingError]]:
    """Reads the fleet file and decides for every device, without touching model or toolchain.

    Returns:
        The fleet, the jobs in its order, and the devices no plan could be made for because something is not installed.

    Raises:
        UsageError: The fleet file, a profile or an option cannot be obeyed; every such problem is named.
    """
    fleet = load_fleet(path)
    refuse_limits(fleet)
    jobs: list[Job] = []
    missing: dict[str, MissingError] = {}
    problems: list[CompilerError] = []
    for device in _selected(fleet, options):
        try:
            jobs.append(_plan_device(device, options))
        except UsageError as error:
            problems.append(error)
        except MissingError as error:
            missing[device.name] = error
    if problems:
        raise combine(problems)
    return fleet, tuple(jobs), missing


def build_fleet(path: Path, options: BuildOptions) -> FleetReport:
    """Builds, verifies and delivers every device class of a fleet file.

    Raises:
        UsageError: The fleet file cannot be obeyed, or the output folder cannot be written; nothing was built.
        ModelError: The model is not valid; nothing was built.
    """
    fleet, jobs, missing = plan_fleet(path, options)
    _claim(options.out)
    source = read_model(fleet.model)
    store = Store(options.cache)
    reports = {name: DeviceReport(name, "failed", options.out / name, error) for name, error in missing.items()}
    started = time.monotonic()
    for index, job in enumerate(jobs):
        log.info("%s (%d of %d)%s", job.device.name, index + 1, len(jobs), _eta(started, index, len(jobs)))
        reports[job.device.name] = _attempt(job, fleet, source, options, store)
    ordered = tuple(reports[device.name] for device in _selected(fleet, options))
    _settle(ordered, fleet, options.out)
    return FleetReport(options.out, ordered, source.notes)


def compile_device(job: Job, fleet: Fleet, source: Imported, options: BuildOptions, store: Store) -> DeviceReport:
    """The whole line for one device class.

    Raises:
        CompilerError: Whatever stopped it; nothing was delivered.
    """
    seconds: dict[str, float] = {}
    passes = job.target.passes(job.profile)
    with _timed(seconds, "import"):
        model = bind_device(source.model, job.device)
        inputs = verification_inputs(fleet, model, job.device)
    if options.dump_passes:
        dump_passes(model, job.plan, passes, options.dump_passes / job.device.name)
    with _timed(seconds, "passes"):
        border = make_border(model, job.plan, passes, inputs=inputs.probe, store=store)
    with _timed(seconds, "build"):
        built = build_artifact(border, job.plan, job.profile, job.target, store=store, limits=options.child)
    with _timed(seconds, "reference"):
        points = reference_points(model, inputs.points, store)
    with _timed(seconds, "verify"):
        verdict = _verify(job, border, built, points, options, store)
    folder = options.out / job.device.name
    with _timed(seconds, "deliver"):
        facts = _facts(job, fleet, model, source, inputs, border, built, verdict)
        measured = _measurements(border, built, verdict, seconds)
        write_artifact(built.artifact, border, facts=facts, measurements=measured, folder=folder)
    status = "deferred" if built.artifact.deferred else "delivered"
    return DeviceReport(
        job.device.name, status, folder, None, job.plan, _row(model, border, built.artifact, verdict), seconds
    )


def _selected(fleet: Fleet, options: BuildOptions) -> Sequence[DeviceClass]:
    unknown = sorted(set(options.devices) - set(fleet.devices))
    if unknown:
        raise UsageError(
            f"the fleet has no device {', '.join(unknown)}",
            where="--device",
            remedy=f"Its devices: {', '.join(fleet.devices)}.",
        )
    return [device for name, device in fleet.devices.items() if not options.devices or name in options.devices]


def _plan_device(device: DeviceClass, options: BuildOptions) -> Job:
    profile = load_profile(device.profile)
    target = find_target(profile.target, where=f"{profile.origin.place(('target',))}")
    return Job(device, profile, target, make_plan(options, device, profile, target))


def _attempt(job: Job, fleet: Fleet, source: Imported, options: BuildOptions, store: Store) -> DeviceReport:
    try:
        return compile_device(job, fleet, source, options, store)
    except FleetError:
        raise
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
        error.what += "\n" + explain_divergence(border.load(), points[0], job.plan, job.profile, limits=options.child)
        raise


def _facts(
    job: Job,
    fleet: Fleet,
    model: ir.Model,
    source: Imported,
    inputs: VerificationInputs,
    border: Border,
    built: Built,
    verdict: Verdict,
) -> dict[str, Any]:
    """The manifest's sections: nothing in them depends on the folder, the clock or the load of the machine."""
    stages = [*border.entries, built.entry]
    return {
        "device": job.device.name,
        "inputs": {
            "model": {"file": fleet.model.name, "sha256": file_digest(fleet.model), "notes": list(source.notes)},
            "samples": {
                "origin": inputs.origin,
                "sha256": arrays_digest(inputs.probe),
                "warnings": list(inputs.warnings),
            },
            "profile": {"name": job.profile.name, "sha256": job.plan.profile_digest, "facts": to_dict(job.profile)},
        },
        "source": vars(measure(model)),
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


def _row(model: ir.Model, border: Border, artifact: Artifact, verdict: Verdict) -> dict[str, Any]:
    sqnr = [one.get("sqnr_db") for point in verdict.points for one in point["outputs"].values() if "sqnr_db" in one]
    return {
        "target": artifact.target,
        "precision": artifact.precision,
        "bytes": sum((artifact.root / name).stat().st_size for name in artifact.files if name.startswith("payload/")),
        "nodes_before": measure(model).nodes,
        "nodes_after": measure(border.load()).nodes,
        "parity": verdict.status,
        "sqnr_db": min(sqnr, default=None),
        "p50_ms": verdict.latency[0]["p50_ms"] if verdict.latency else None,
        "instructions": verdict.instructions,
        "evidence": str(verdict.evidence),
        "reason": verdict.reason,
    }


def _claim(out: Path) -> None:
    """The output folder must be writable before an hour of building, not after."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()


def _settle(reports: Sequence[DeviceReport], fleet: Fleet, out: Path) -> None:
    """A failed device leaves no artifact of an earlier build behind; `build.json` says what is there."""
    with output_errors(out):
        for report in reports:
            if report.error:
                shutil.rmtree(report.folder, ignore_errors=True)
        devices = {report.device: _summary(report) for report in reports}
        summary = {
            "schema": 1,
            "fleetc": version("fleetc"),
            "fleet": fleet.path.name,
            "model": file_digest(fleet.model),
        }
        write_json(out / "build.json", {**summary, "devices": devices})


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
