"""A verdict as text for a terminal."""

from __future__ import annotations

import math

from rollout.metric import Judged, Metric, Role
from rollout.verdict import Decision, Verdict

HEAD = ("metric", "role", "current", "candidate", "judged", "bounds now", "limit", "requests", "state")


def verdict_text(verdict: Verdict) -> str:
    """The word, why, and a table of the metrics."""
    about = f" (≈ {verdict.more:,} more requests)" if verdict.more else ""
    word = verdict.decision + (about if verdict.decision == Decision.KEEP_GOING else "")
    rows = [HEAD, *(_row(metric) for metric in verdict.metrics)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{word}: {'; '.join(verdict.reasons)}", "", *table])


def _row(metric: Metric) -> tuple[str, ...]:
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
