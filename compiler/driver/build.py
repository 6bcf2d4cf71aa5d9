"""The straight line: a fleet file in, one verified artifact per device class out; nothing loops back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from compiler.artifact.manifest import write_artifact
from compiler.artifact.report import read_build, write_report
from compiler.driver.clock import Clock, Pace
from compiler.driver.dist import claim_folder, settle_folder
from compiler.driver.reports import (
    DeviceReport,
    FleetReport,
    Source,
    delivered_report,
    failed_report,
    manifest_facts,
    measured_facts,
)
from compiler.driver.search.search import BuildContext, search_precision
from compiler.driver.stages.border import dump_passes
from compiler.driver.stages.data import open_data
from compiler.driver.stages.inputs import prepare
from compiler.errors import CompilerError, InternalError
from compiler.fleet import Fleet
from compiler.model.frontend import read_model
from compiler.plan import BuildOptions
from compiler.plan.jobs import Job, plan_fleet, selected_devices
from compiler.store import Store, file_digest

log = logging.getLogger("fleetc.build")


def build_fleet(path: Path, options: BuildOptions) -> FleetReport:
    """Builds, verifies and delivers every device class of a fleet file.

    Raises:
        UsageError: The fleet file is not valid or can be obeyed for no device, data do not fit the model, or the output
            folder cannot be written; nothing was built.
        ModelError: The model is not valid; nothing was built.
    """
    fleet, jobs, failed = plan_fleet(path, options)
    claim_folder(options.out, selected_devices(fleet, options))
    source, unfit = _read_source(fleet, jobs)
    failed |= unfit
    jobs = tuple(job for job in jobs if job.device.name not in unfit)
    store = Store(options.cache, wait_s=options.cache_wait_s)
    for name, error in failed.items():
        log.error("%s failed: %s", name, error.brief)
    reports = {name: DeviceReport(name, options.out / name, error) for name, error in failed.items()}
    pace = Pace(sum(job.plan.pieces for job in jobs))
    for index, job in enumerate(jobs):
        pace.done = sum(earlier.plan.pieces for earlier in jobs[:index])
        log.info("%s (%d of %d)%s", job.device.name, index + 1, len(jobs), pace.left)
        reports[job.device.name] = _attempt(job, fleet, source, options, store, pace)
    ordered = tuple(reports[device.name] for device in selected_devices(fleet, options))
    settle_folder(ordered, fleet, source.digest, options.out)
    return FleetReport(options.out, ordered, source.imported.notes, _write_page(options.out))


def compile_device(
    job: Job, fleet: Fleet, source: Source, options: BuildOptions, store: Store, pace: Pace
) -> DeviceReport:
    """The whole line for one device class.

    Raises:
        CompilerError: Whatever stopped it before there was anything to judge; nothing was delivered.
    """
    clock = Clock(pace)
    ready = source.prepared[job.device.name]
    if options.dump_passes:
        passes, capability = job.target.passes(job.profile), job.target.capability(job.profile)
        dump_passes(ready.model, job.plan, passes, options.dump_passes / job.device.name, capability=capability)
    found = search_precision(BuildContext(job, ready, source.data[job.device.name], options, store, clock))
    folder = options.out / job.device.name
    if found.made is None:
        return failed_report(job, folder, found)
    with clock.timed("deliver"):
        facts = manifest_facts(job, fleet, source, found.made, found)
        measured = measured_facts(found.made, clock.seconds)
        write_artifact(
            found.made.built.artifact, found.made.border.path, facts=facts, measurements=measured, folder=folder
        )
    return delivered_report(job, folder, found.made, facts, clock.seconds)


def _read_source(fleet: Fleet, jobs: Sequence[Job]) -> tuple[Source, dict[str, CompilerError]]:
    """What all builds start from, and the devices whose sizes do not fit the model."""
    imported = read_model(fleet.model)
    prepared, failed = prepare(fleet, imported.model, [job.device for job in jobs])
    fitting = [job for job in jobs if job.device.name in prepared]
    return Source(imported, file_digest(fleet.model), prepared, open_data(fleet, fitting, prepared)), failed


def _write_page(out: Path) -> Path:
    build = read_build(out)
    for problem in build.problems:
        log.warning("the report leaves out a device of an earlier build: %s", problem)
    return write_report(build)


def _attempt(job: Job, fleet: Fleet, source: Source, options: BuildOptions, store: Store, pace: Pace) -> DeviceReport:
    try:
        return compile_device(job, fleet, source, options, store, pace)
    except CompilerError as error:
        log.error("%s failed: %s", job.device.name, error.brief)
        return DeviceReport(job.device.name, options.out / job.device.name, error, job.plan)
    except Exception as error:  # our bug must not take the other devices along; its traceback is for -v
        log.debug("%s", job.device.name, exc_info=error)
        remedy = "Report it with what `fleetc -v` prints."
        bug = InternalError(f"{type(error).__name__}: {error}", where=job.device.name, remedy=remedy)
        return DeviceReport(job.device.name, options.out / job.device.name, bug, job.plan)
