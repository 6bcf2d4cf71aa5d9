"""The straight line: a fleet file in, one verified artifact per device class out; nothing loops back."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from compiler.artifact.report import read_build, write_report
from compiler.driver.clock import Clock, Pace
from compiler.driver.deliver import deliver
from compiler.driver.dist import claim_folder, settle_folder
from compiler.driver.events import DeviceFinished, DeviceStarted, Level, Note, Sink, ignore
from compiler.driver.reports import (
    DeviceReport,
    FleetReport,
    Source,
    delivered_report,
    failed_report,
)
from compiler.driver.search.search import BuildContext, search_precision
from compiler.driver.side_by_side import work_side_by_side
from compiler.driver.stages.any_batch import may_share, share_batch
from compiler.driver.stages.border import dump_passes
from compiler.driver.stages.data import open_data
from compiler.driver.stages.inputs import BuildStart, prepare, read_original
from compiler.errors import CompilerError, InternalError
from compiler.fleet import DeviceClass, Fleet
from compiler.fleet.machine import available_cpus
from compiler.plan import BuildOptions
from compiler.plan.jobs import Job, plan_fleet, selected_devices
from compiler.plan.plan import size_dims
from compiler.store import Store, file_digest
from compiler.store.remote import open_remote


@dataclass(frozen=True)
class Opened:
    """What a build starts with, once everything is read and nothing is made yet.

    Args:
        fleet: The fleet file.
        devices: The device classes that were asked for.
        jobs: Those that can be built.
        source: The model, and what each job starts from.
        store: The store of finished stages.
        sink: Takes the events of all devices.
        reports: By device: of those that cannot be built at once, of the others as they end.
    """

    fleet: Fleet
    devices: Sequence[DeviceClass]
    jobs: tuple[Job, ...]
    source: Source
    store: Store
    sink: Pace
    reports: dict[str, DeviceReport]

    def run(self, job: Job, options: BuildOptions, build: Callable[[], DeviceReport]) -> None:
        """Builds one device class and keeps its report; whatever goes wrong with it is in the report."""
        number = 1 + next(index for index, other in enumerate(self.jobs) if other is job)
        self.sink(DeviceStarted(job.device.name, number, len(self.jobs)))
        report = attempt(job, options, self.sink, build)
        self.sink(DeviceFinished(report.device, report.status, report.error.brief if report.error else ""))
        self.reports[job.device.name] = report

    @property
    def ordered(self) -> tuple[DeviceReport, ...]:
        """The reports in the order of the fleet file."""
        return tuple(self.reports[device.name] for device in self.devices)


def open_build(path: Path, options: BuildOptions, events: Sink) -> Opened:
    """Reads the fleet file, the model and the data, and claims the output folder.

    Raises:
        UsageError: The fleet file is not valid or can be obeyed for no device, data do not fit the model, or the output
            folder cannot be written.
        ModelError: The model is not valid.
    """
    fleet, jobs, failed = plan_fleet(path, options)
    devices = selected_devices(fleet, options)
    claim_folder(options.out, devices, is_for_artifacts=options.last is None)
    source, unfit = read_source(fleet, jobs)
    jobs = sized_jobs(jobs, source)
    return Opened(
        fleet,
        devices,
        jobs,
        source,
        store=Store(options.cache, wait_s=options.cache_wait_s, remote=open_remote(options.remote)),
        sink=Pace({job.device.name: job.pieces for job in jobs}, events),
        reports={name: DeviceReport(name, options.out / name, error) for name, error in (failed | unfit).items()},
    )


def build_fleet(path: Path, options: BuildOptions, *, events: Sink = ignore) -> FleetReport:
    """Builds, verifies and delivers every device class of a fleet file.

    Args:
        path: The fleet file.
        options: The command line.
        events: Is told what happens as it happens.

    Raises:
        UsageError: The fleet file is not valid or can be obeyed for no device, data do not fit the model, or the output
            folder cannot be written; nothing was built.
        ModelError: The model is not valid; nothing was built.
    """
    opened = open_build(path, options, events)
    fleet, source, store, sink = opened.fleet, opened.source, opened.store, opened.sink

    def work(job: Job) -> None:
        opened.run(job, options, partial(compile_device, job, fleet, source, options, store, sink))

    work_side_by_side(opened.jobs, work, store=store, most=options.jobs or available_cpus(), stop=sink.stop)
    settle_folder(opened.ordered, fleet, source.digest, options.out)
    page = _write_page(options.out, events) if options.report else None
    return FleetReport(options.out, opened.ordered, source.imported.notes, page)


def compile_device(
    job: Job, fleet: Fleet, source: Source, options: BuildOptions, store: Store, sink: Sink
) -> DeviceReport:
    """The whole line for one device class.

    Raises:
        CompilerError: Whatever stopped it before there was anything to judge; nothing was delivered.
    """
    clock = Clock(job.device.name, sink)
    ready = source.prepared[job.device.name]
    if options.dump_passes:
        passes, capability = job.target.passes(job.profile), job.target.capability(job.profile)
        dump_passes(ready.model, job.plan, passes, options.dump_passes / job.device.name, capability=capability)
    context = share_batch(BuildContext(job, ready, source.data[job.device.name], options, store, clock))
    result = search_precision(context)
    folder = options.out / job.device.name
    if result.made is None:
        return failed_report(job, folder, result)
    facts = deliver(context, fleet, source, result, folder=folder)
    return delivered_report(job, folder, result.made, facts, clock.seconds)


def read_source(fleet: Fleet, jobs: Sequence[Job]) -> tuple[Source, dict[str, CompilerError]]:
    """The fleet's model, what the build of each device starts from, and the devices whose sizes do not fit the model.

    Raises:
        ModelError: The model is not valid.
        UsageError: Sizes fit it for no device, or data do not fit it.
    """
    imported = read_original(fleet)
    sharing = [
        job.device.name
        for job in jobs
        if any(may_share(own.plan) for own in job.by_target) and job.device.generation is None
    ]
    prepared, failed = prepare(fleet, imported.model, [job.device for job in jobs], sharing=sharing)
    fitting = [job for job in jobs if job.device.name in prepared]
    return Source(imported, file_digest(fleet.model), prepared, open_data(fleet, fitting, prepared)), failed


def sized_jobs(jobs: Sequence[Job], source: Source) -> tuple[Job, ...]:
    """The jobs whose sizes fit the model, each plan with the sizes that only the model names."""
    fitting = [(job, source.prepared[job.device.name]) for job in jobs if job.device.name in source.prepared]
    return tuple(_sized(job, ready) for job, ready in fitting)


def _sized(job: Job, ready: BuildStart) -> Job:
    others = tuple(_sized(other, ready) for other in job.others)
    return replace(job, plan=size_dims(job.plan, ready.sums), others=others)


def _write_page(out: Path, events: Sink) -> Path:
    build = read_build(out)
    for problem in build.problems:
        events(Note("", f"the report leaves out a device of an earlier build: {problem}", Level.WARNING))
    return write_report(build)


def attempt(job: Job, options: BuildOptions, sink: Sink, build: Callable[[], DeviceReport]) -> DeviceReport:
    """The report of one device; whatever goes wrong with it is in the report, and the other devices go on."""
    try:
        return build()
    except CompilerError as error:
        return DeviceReport(job.device.name, options.out / job.device.name, error, job.plan)
    except Exception as error:  # our bug must not take the other devices along; its traceback is for -v
        sink(Note(job.device.name, "".join(traceback.format_exception(error)), Level.DEBUG))
        remedy = "Report it with what `fleetc -v` prints."
        bug = InternalError(f"{type(error).__name__}: {error}", where=job.device.name, remedy=remedy)
        return DeviceReport(job.device.name, options.out / job.device.name, bug, job.plan)
