"""A verdict as text for a terminal."""

from __future__ import annotations

import math

from rollout.live import Mode, Report, Standing
from rollout.metric import Judged, Metric, Role
from rollout.verdict import Decision, Verdict

HEAD = ("metric", "role", "current", "candidate", "judged", "bounds now", "limit", "requests", "state")


def verdict_text(verdict: Verdict) -> str:
    """The word, why, and a table of the metrics."""
    about = f" (≈ {verdict.more:,} more requests)" if verdict.more else ""
    word = verdict.decision + (about if verdict.decision == Decision.KEEP_GOING else "")
    rows = [HEAD, *(metric_row(metric) for metric in verdict.metrics)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{word}: {'; '.join(verdict.reasons)}", "", *table])


def report_text(report: Report) -> str:
    """Where an experiment stands, and its verdict."""
    share = f"{100 * report.share:.3g} %"
    what = f"sees {share} of the requests" if report.mode == Mode.SHADOW else f"answers {share} of the clients"
    state = what if report.standing == Standing.RUNNING else f"{report.standing}: {report.why}"
    skipped = f", {report.skipped} left out while the server was busy" if report.skipped else ""
    head = f"{report.candidate} for {report.model}: {state} ({report.seconds:.0f} s{skipped})"
    return f"{head}\n{verdict_text(report.verdict)}"


def metric_row(metric: Metric) -> tuple[str, ...]:
    """A metric's cells below `HEAD`."""
    bounds = f"{_figure(metric.bounds.low, metric)} to {_figure(metric.bounds.high, metric)}"
    limit = "-" if metric.role == Role.SHOWN else f"<= {_figure(metric.limit, metric)}"
    values = (_figure(metric.current, metric), _figure(metric.candidate, metric), metric.judged, bounds, limit)
    return (metric.name, metric.role, *values, str(metric.samples), metric.state)


def _figure(value: float, metric: Metric) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "unknown"
    if metric.judged == Judged.SHARE:
        return f"{100 * value:.3g} %"
    return f"{value:.4g} {metric.unit}".rstrip()
