"""The command on a finished build: report."""

from __future__ import annotations

from pathlib import Path

import click

from compiler.cli.options import FOLDER, json_option
from compiler.cli.output import print_json
from compiler.errors import combine


@click.command()
@click.argument("dist", type=FOLDER)
@click.option("--previous", type=FOLDER, metavar="DIST", help="An earlier build to tell the differences to.")
@json_option
def report(dist: Path, previous: Path | None, as_json: bool) -> None:
    """Make report.html of a build again from its manifests."""
    from compiler.report import read_build, write_report

    build = read_build(dist)
    before = read_build(previous) if previous else None
    page = write_report(build, previous=before)
    print_json({"report": str(page)}) if as_json else click.echo(f"report: {page}")
    problems = [*build.problems, *(before.problems if before else ())]
    if problems:
        raise combine(problems)
