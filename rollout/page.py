"""An experiment as one HTML page in the style of the report; no script, nothing from the network."""

from __future__ import annotations

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from rollout.live import Report, Standing
from rollout.text import HEAD, metric_row


def experiment_page(report: Report) -> str:
    """Where an experiment stands; while it runs, the page loads itself again."""
    rows = [(metric, metric_row(metric)) for metric in report.verdict.metrics]
    is_running = report.standing == Standing.RUNNING
    return _templates().get_template("experiment.html").render(report=report, rows=rows, head=HEAD, running=is_running)


@cache
def _templates() -> Environment:
    # the report's style is its own file there, so that both look alike
    loader = ChoiceLoader([PackageLoader("rollout"), PackageLoader("compiler.artifact.report")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
