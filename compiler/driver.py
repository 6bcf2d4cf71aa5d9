"""The straight line: a fleet file in, one verified artifact per device class out; nothing loops back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compiler.bisect import explain_divergence
from compiler.build import Built, build_artifact
from compiler.dist import claim_folder, settle_folder
from compiler.errors import CompilerError, GateFailed, InternalError
from compiler.fleet import DeviceClass, Fleet
from compiler.frontend import read_model
from compiler.inputs import prepare
from compiler.jobs import Job, plan_fleet, selected_devices
from compiler.manifest import write_artifact
from compiler.plan import BuildOptions
from compiler.portable import Border, dump_passes, make_border
from compiler.record import DeviceReport, FleetReport, Source, manifest_facts, measured_facts, table_row
from compiler.store import Store, file_digest
from compiler.verify import Point, Verdict, reference_points, verify_artifact

log = logging.getLogger("fleetc.build")


def build_fleet(path: Path, options: BuildOptions) -> FleetReport:
    """Builds, verifies and delivers every device class of a fleet file.

    Raises:
        UsageError: The fleet file cannot be obeyed, data do not fit the model, or the output folder cannot be written;
            nothing was built.
        ModelError: The model is not valid; nothing was built.
    """
    fleet, jobs, missing = plan_fleet(path, options)
    claim_folder(options.out, selected_devices(fleet, options))
    source = _read_source(fleet, [job.device for job in jobs])
    store = Store(options.cache)
    reports = {name: DeviceReport(name, "failed", options.out / name, error) for name, error in missing.items()}
    started = time.monotonic()
    for index, job in enumerate(jobs):
        log.info("%s (%d of %d)%s", job.device.name, index + 1, len(jobs), _eta(started, index, len(jobs)))
        reports[job.device.name] = _attempt(job, fleet, source, options, store)
    ordered = tuple(reports[device.name] for device in selected_devices(fleet, options))
    settle_folder(ordered, fleet, source.digest, options.out)
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
        facts = manifest_facts(job, fleet, source, border, built, verdict)
        measured = measured_facts(border, built, verdict, seconds)
        write_artifact(built.artifact, border, facts=facts, measurements=measured, folder=folder)
    status = "deferred" if built.artifact.deferred else "delivered"
    return DeviceReport(
        job.device.name, status, folder, None, job.plan, table_row(facts, built.artifact, verdict), seconds
    )


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
    except Exception as error:  # our bug must not take the other devices along; its traceback is for -v
        log.debug("%s", job.device.name, exc_info=error)
        remedy = "Report it with what `fleetc -v` prints."
        bug = InternalError(f"{type(error).__name__}: {error}", where=job.device.name, remedy=remedy)
        return DeviceReport(job.device.name, "failed", options.out / job.device.name, bug, job.plan)


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


def _eta(started: float, done: int, total: int) -> str:
    left = (time.monotonic() - started) / done * (total - done) if done else 0.0
    return f", about {left:.0f} s left" if left > 5 else ""


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 3)
