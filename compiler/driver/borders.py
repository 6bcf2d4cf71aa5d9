"""`fleetc build --to STAGE`: the portable half alone, ending with a model per device class."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compiler.artifact.manifest import BORDER, BORDER_DATA, MANIFEST
from compiler.artifact.schema import DeviceStatus
from compiler.driver.build import attempt, read_source, sized_jobs
from compiler.driver.clock import Clock, Pace
from compiler.driver.dist import claim_folder
from compiler.driver.events import DeviceFinished, DeviceStarted, Sink, ignore
from compiler.driver.reports import DeviceReport, FleetReport, Source
from compiler.driver.stages.any_batch import without_any_batch
from compiler.driver.stages.border import Border, dump_passes
from compiler.driver.stages.border_parity import judge_border
from compiler.driver.stages.candidate import make_candidate_border
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.quantize import Variant
from compiler.driver.stages.reference import reference_cases
from compiler.errors import InternalError, OutputError
from compiler.passes.instrument import measure
from compiler.plan import BuildOptions, settle
from compiler.plan.jobs import Job, plan_fleet, selected_devices
from compiler.store import StageName, Store
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors


@dataclass(frozen=True)
class BorderReport(DeviceReport):
    """A device class of which only the border model was asked for, or one before it."""

    @property
    def status(self) -> DeviceStatus:
        """What became of it."""
        return DeviceStatus.BORDER


def build_borders(path: Path, options: BuildOptions, *, events: Sink = ignore) -> FleetReport:
    """Writes the model that each device's target would be given, or one before it, as `border.onnx` of its folder.

    Args:
        path: The fleet file; or a model, where the options say what to build it for.
        options: The command line, with the stage to end at.
        events: Is told what happens as it happens.

    Raises:
        UsageError: The fleet file cannot be obeyed, a device's precision or pruning is decided by a search, data do not
            fit, or a folder holds a delivered artifact; nothing was made.
        ModelError: The model is not valid; nothing was made.
    """
    if options.last is None:
        raise InternalError("no stage is named to end at")
    fleet, jobs, failed = plan_fleet(path, options)
    devices = selected_devices(fleet, options)
    claim_folder(options.out, devices)
    _refuse_delivered([options.out / device.name for device in devices])
    source, unfit = read_source(fleet, jobs)
    failed |= unfit
    jobs = sized_jobs(jobs, source)
    store = Store(options.cache, wait_s=options.cache_wait_s)
    reports = {name: DeviceReport(name, options.out / name, error) for name, error in failed.items()}
    sink = Pace({job.device.name: job.plan.pieces for job in jobs}, events)
    for number, job in enumerate(jobs, start=1):
        sink(DeviceStarted(job.device.name, number, len(jobs)))
        report = attempt(job, options, sink, partial(_border, job, source, options, store, sink))
        sink(DeviceFinished(report.device, report.status, report.error.brief if report.error else ""))
        reports[job.device.name] = report
    return FleetReport(options.out, tuple(reports[device.name] for device in devices), source.imported.notes)


def _border(job: Job, source: Source, options: BuildOptions, store: Store, sink: Sink) -> DeviceReport:
    clock, name, last = Clock(job.device.name, sink), job.device.name, options.last or StageName.SPECIALIZE
    # the models before the border model are delivered with the device's own batch: nothing is shared here
    context = without_any_batch(BuildContext(job, source.prepared[name], source.data[name], options, store, clock))
    if options.dump_passes:
        dump_passes(
            context.ready.model,
            job.plan,
            job.target.passes(job.profile),
            options.dump_passes / name,
            capability=job.target.capability(job.profile),
        )
    plan = settle(job.plan, job.plan.rule, job.plan.reason)
    border = make_candidate_border(context, plan, Variant(), last=last)
    with clock.timed(StageName.REFERENCE):
        ready, stages = context.ready, context.stages
        imported = reference_cases(ready.model, ready.digest, ready.inputs.points, stages)
        judge_border(border, plan, ready, imported, where=f"{name}: verify", stages=stages)
    with clock.timed(StageName.DELIVER):
        file = _write(border, options.out / name)
    row = {
        "profile": job.device.profile,
        "precision": plan.precision,
        "stages": [entry.stage for entry in border.entries],
        "nodes_before": measure(context.ready.model).nodes,
        "nodes_after": measure(border.load()).nodes,
        "border": str(file),
        "sha256": border.digest,
    }
    return BorderReport(name, options.out / name, None, plan, row, dict(clock.seconds))


def _write(border: Border, folder: Path) -> Path:
    """Copies the model into a folder, its weights before the file that names them."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (BORDER_DATA, BORDER):
            source = border.path.with_name(name)
            if source.exists():
                with source.open("rb") as model:
                    write_atomic(folder / name, partial(shutil.copyfileobj, model))
            else:
                (folder / name).unlink(missing_ok=True)  # weights of a larger model that was here before
    return folder / BORDER


def _refuse_delivered(folders: Sequence[Path]) -> None:
    delivered = [folder for folder in folders if (folder / MANIFEST).exists()]
    if delivered:
        raise OutputError(
            f"an artifact is delivered in {', '.join(map(str, delivered))}, and a border model alone would replace it",
            where="--to",
            remedy="Choose another --out. Each delivered folder holds its border model already: border.onnx.",
        )
