"""Commands on a fleet file and on whole builds: build, plan, diff."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.cli import text
from compiler.cli.options import FILE, FOLDER, build_options, cache_option, child_options, json_option, options_of
from compiler.cli.output import PARTIAL, print_json
from compiler.cli.text_changes import changes_text
from compiler.cli.text_tuning import kernels_text
from compiler.plan import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compiler.fleet import Fleet
    from compiler.plan.jobs import Job


@click.command()
@click.argument("fleet", type=FILE)
@click.option(
    "--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="Folder that gets one folder per device."
)
@click.option("--dump-passes", type=FOLDER, metavar="DIR", help="Write the model after every pass that changed it.")
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Timed runs per batch size where it runs here.",
)
@click.option(
    "--cache-wait",
    "cache_wait_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Longest time to wait for another build that makes the same stage; by default for ever.",
)
@click.option("--check-reproducible", is_flag=True, help="Build a second time from nothing and compare every file.")
@build_options
@child_options
@cache_option
@json_option
def build(fleet: Path, as_json: bool, check_reproducible: bool, **options: Any) -> None:
    """Build, verify and deliver every device class of a FLEET file."""
    from compiler.driver import build_fleet
    from compiler.driver.delivered.reproduce import check_reproducible as check
    from compiler.driver.delivered.reproduce import refuse_non_reproducible

    chosen = options_of(options)
    if check_reproducible:
        refuse_non_reproducible(fleet, chosen)
    report = build_fleet(fleet, chosen)
    devices = [_device_json(one) for one in report.devices]
    value: dict[str, Any] = {"out": str(report.out), "notes": report.notes, "devices": devices}
    value["report"] = str(report.page)
    PARTIAL.update(value) if as_json else click.echo(text.fleet_text(report))
    report.raise_failures()
    if check_reproducible:
        check(fleet, chosen)
        value["reproducible"] = True
        click.echo("reproducible: a second build from nothing gave the same bytes", err=as_json)
    if as_json:
        print_json(value)


@click.command()
@click.argument("fleet", type=FILE)
@click.option("--kernels", is_flag=True, help="Also each kernel's schedule and its record; needs the toolchain.")
@build_options
@cache_option
@json_option
def plan(fleet: Path, as_json: bool, kernels: bool, **options: Any) -> None:
    """Print what would be done for each device of a FLEET file, and why, without touching a toolchain."""
    from compiler.artifact.adapter import to_json
    from compiler.errors import combine
    from compiler.plan.jobs import plan_fleet

    chosen = BuildOptions(**options)
    read, jobs, failed = plan_fleet(fleet, chosen)
    value: dict[str, Any] = {"plans": [to_json(job.plan.facts) for job in jobs]}
    value |= {"failed": {name: error.to_dict() for name, error in failed.items()}}
    if as_json:
        PARTIAL.update(value)
    elif jobs:
        click.echo("\n\n".join(text.plan_text(job.plan) for job in jobs))
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

    found = {job.device.name: plan_kernels(job, fleet, cache=options.cache, child=options.child) for job in jobs}
    if not as_json:
        click.echo("\n" + "\n\n".join(kernels_text(name, one.to_dict()) for name, one in found.items()))
    return {name: one.to_dict() for name, one in found.items()}


def _device_json(device: Any) -> dict[str, Any]:
    return {
        "device": device.device,
        "status": device.status,
        "folder": str(device.folder),
        **device.row,
        "error": device.error.to_dict() if device.error else None,
        "seconds": device.seconds,
    }
