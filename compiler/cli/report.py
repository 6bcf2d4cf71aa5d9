"""The command on a finished build: report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from compiler.cli.options import FILE, FOLDER, json_option
from compiler.cli.output import print_json
from compiler.errors import UsageError, combine

if TYPE_CHECKING:
    from compiler.artifact.report import Build


@click.command()
@click.argument("dist", type=FOLDER)
@click.option("--previous", type=FOLDER, metavar="DIST", help="An earlier build to tell the differences to.")
@click.option(
    "--summary",
    type=click.Choice(["md", "junit", "yaml"]),
    help="Also print Markdown for a pull request, JUnit XML of the gates, or YAML as device clouds write it.",
)
@click.option("--metrics", type=FILE, help="What a server of the build gave under /metrics: shown beside.")
@json_option
def report(dist: Path, previous: Path | None, metrics: Path | None, summary: str | None, as_json: bool) -> None:
    """Make report.html of a build again from its manifests."""
    from compiler.artifact.report import read_build, write_report

    if summary and as_json:
        raise UsageError("--summary and --json both want stdout", where="fleetc report", remedy="Choose one of them.")
    build = read_build(dist)
    before = read_build(previous) if previous else None
    page = write_report(build, previous=before, metrics=metrics)
    if summary:
        click.echo(_summary(summary, build, before), nl=False)
    elif as_json:
        print_json({"report": str(page)})
    click.echo(f"report: {page}", err=bool(summary or as_json))
    problems = [*build.problems, *(before.problems if before else ())]
    if problems:
        raise combine(problems)


def _summary(kind: str, build: Build, before: Build | None) -> str:
    from compiler.artifact.report.summary import cloud_yaml, junit, markdown

    return markdown(build, before) if kind == "md" else junit(build) if kind == "junit" else cloud_yaml(build)
