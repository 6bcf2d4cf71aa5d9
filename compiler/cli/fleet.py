"""Commands on a fleet file and on whole builds: build, plan, diff."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.cli import text
from compiler.cli.options import (
    FILE,
    FOLDER,
    build_options,
    cache_option,
    child_options,
    events_option,
    half_options,
    json_option,
    model_options,
    options_of,
    remote_options,
    request_of,
)
from compiler.cli.output import Session, print_json
from compiler.cli.text_borders import borders_text
from compiler.cli.text_changes import changes_text
from compiler.cli.text_tuning import kernels_text
from compiler.errors import UsageError
from compiler.plan import EMULATE_S, BuildOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compiler.driver.reports import DeviceReport, FleetReport
    from compiler.fleet import Fleet
    from compiler.plan.jobs import Job


@click.command()
@click.argument("source", type=FILE)
@click.option(
    "--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="Folder that gets one folder per device."
)
@click.option("--no-emulate", is_flag=True, help="Do not run ARM builds in the emulator: delivered as not executed.")
@click.option(
    "--emulate-seconds",
    "emulate_s",
    type=click.FloatRange(min=0, min_open=True),
    default=EMULATE_S,
    show_default=True,
    metavar="SECONDS",
    help="Longest time one build may run in the emulator; what did not end in it is delivered as not executed.",
)
@click.option("--dump-passes", type=FOLDER, metavar="DIR", help="Write the model after every pass that changed it.")
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Timed runs per batch size where it runs here; fewer, 5 at least, where they would take longer than 5 s.",
)
@click.option(
    "--race-seconds",
    "race_s",
    type=click.FloatRange(min=0),
    envvar="FLEETC_RACE_SECONDS",
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time that a candidate and the float original are run in turn to tell how much faster it is "
    "(FLEETC_RACE_SECONDS).",
)
@click.option(
    "--cache-wait",
    "cache_wait_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Longest time to wait for another build that makes the same stage; by default for ever.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    callback=lambda context, option, value: value or 0,
    help="Most devices to build at a time; as many as there are processors by default.",
)
@click.option("--no-report", "report", flag_value=False, default=True, help="Do not write report.html.")
@click.option("--check-reproducible", is_flag=True, help="Build a second time from nothing and compare every file.")
@model_options
@half_options
@build_options
@child_options
@cache_option
@remote_options
@json_option
@events_option
@click.pass_obj
def build(session: Session, /, source: Path, as_json: bool, check_reproducible: bool, **options: Any) -> None:
    """Build, verify and deliver every device class of SOURCE: a fleet file, or an ONNX model with --profile."""
    from compiler.driver import build_fleet
    from compiler.driver.delivered.reproduce import check_reproducible as check
    from compiler.driver.delivered.reproduce import refuse_non_reproducible

    request = request_of(options)
    chosen = options_of({**options, "request": request})
    if check_reproducible and chosen.last is not None:
        raise UsageError(
            "two whole builds are compared, and this one ends before its artifact",
            where="--check-reproducible",
            remedy="Leave --to or the check out.",
        )
    if check_reproducible:
        refuse_non_reproducible(source, chosen)
    if chosen.last is not None:
        _build_borders(session, source, chosen)
        return
    report = build_fleet(source, chosen, events=session.sink)
    value = _report_json(report)
    session.partial.update(value) if as_json else click.echo(text.fleet_text(report))
    report.raise_failures()
    if check_reproducible:
        check(source, chosen)
        value["reproducible"] = True
        said = "reproducible: a second build from nothing gave the same bytes"
        session.tell(said) if as_json else click.echo(said)
    if as_json:
        print_json(value)


@click.command()
@click.argument("source", type=FILE)
@click.option("--kernels", is_flag=True, help="Also each kernel's schedule and its record; needs the toolchain.")
@model_options
@build_options
@cache_option
@json_option
@click.pass_obj
def plan(session: Session, /, source: Path, as_json: bool, kernels: bool, **options: Any) -> None:
    """Print what would be done for each device of SOURCE, and why, without touching a toolchain."""
    from compiler.artifact.adapter import to_json
    from compiler.driver.forecast import forecast
    from compiler.errors import combine
    from compiler.fleet.machine import available_cpus
    from compiler.plan.jobs import plan_fleet
    from compiler.store import Store

    request = request_of(options)
    chosen = BuildOptions(**options, request=request)
    read, jobs, failed = plan_fleet(source, chosen)
    value: dict[str, Any] = {"plans": [to_json(job.plan.facts) for job in jobs]}
    expected = forecast(jobs, Store(chosen.cache), most=available_cpus())
    value["forecast"] = asdict(expected)
    value |= {"failed": {name: error.to_dict() for name, error in failed.items()}}
    if as_json:
        session.partial.update(value)
    elif jobs:
        plans = [text.plan_text(job.plan, search=chosen.search) for job in jobs]
        click.echo("\n\n".join([*plans, text.forecast_text(expected)]))
    if kernels:
        value["kernels"] = _kernels(read, jobs, chosen, as_json=as_json)
    if failed:
        raise combine(list(failed.values()))
    if as_json:
        print_json(value)


@click.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@json_option
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Tell what changed from one dist folder, or device's folder, to another, and which change explains which."""
    from compiler.artifact.diff import compare_builds

    changes = compare_builds(first, second)
    print_json([asdict(change) for change in changes]) if as_json else click.echo(changes_text(changes))


def _kernels(fleet: Fleet, jobs: Sequence[Job], options: BuildOptions, *, as_json: bool) -> dict[str, Any]:
    """What each kernel of each device would be built with."""
    from compiler.driver.tune_kernels import plan_kernels

    plans = {
        job.device.name: plan_kernels(job, fleet, cache=options.cache, child_limits=options.child_limits)
        for job in jobs
    }
    if not as_json:
        click.echo("\n" + "\n\n".join(kernels_text(name, plan.to_dict()) for name, plan in plans.items()))
    return {name: plan.to_dict() for name, plan in plans.items()}


def _build_borders(session: Session, source: Path, options: BuildOptions) -> None:
    """`--to`: the models are delivered, and nothing else."""
    from compiler.driver.borders import build_borders

    report = build_borders(source, options, events=session.sink)
    value = _report_json(report)
    session.partial.update(value) if session.as_json else click.echo(borders_text(report, str(options.last)))
    report.raise_failures()
    if session.as_json:
        print_json(value)


def _report_json(report: FleetReport) -> dict[str, Any]:
    devices = [_device_json(device) for device in report.devices]
    page = {"report": str(report.page)} if report.page else {}
    return {"out": str(report.out), "notes": report.notes, "devices": devices, **page}


def _device_json(device: DeviceReport) -> dict[str, Any]:
    return {
        "device": device.device,
        "status": device.status,
        "folder": str(device.folder),
        **device.row,
        "error": device.error.to_dict() if device.error else None,
        "seconds": device.seconds,
    }
