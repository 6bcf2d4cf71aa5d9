"""`fleetc build --to STAGE`: the portable half alone, ending with a model per device class."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compiler.artifact.manifest import BORDER, BORDER_DATA
from compiler.artifact.schema import DeviceStatus
from compiler.driver.build import open_build
from compiler.driver.clock import Clock
from compiler.driver.events import Sink, ignore
from compiler.driver.reports import DeviceReport, FleetReport, Source
from compiler.driver.stages.any_batch import without_any_batch
from compiler.driver.stages.border import Border, dump_passes
from compiler.driver.stages.border_parity import judge_border
from compiler.driver.stages.candidate import make_candidate_border
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.quantize import Variant
from compiler.driver.stages.reference import reference_cases
from compiler.errors import InternalError
from compiler.passes.instrument import measure
from compiler.plan import BuildOptions, settle
from compiler.plan.jobs import Job
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
    opened = open_build(path, options, events)
    for job in opened.jobs:
        opened.run(job, options, partial(_border, job, opened.source, options, opened.store, opened.sink))
    return FleetReport(options.out, opened.ordered, opened.source.imported.notes)


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
