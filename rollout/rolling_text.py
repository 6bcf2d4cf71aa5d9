"""A rollout as text for a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rollout.controller import figures_of
from rollout.journal import Standing
from rollout.reports import DeviceReport
from rollout.spec import Spec

HEAD = ("group", "state", "devices", "installed", "failed", "silent", "requests", "late", "errors")

SHOWN = 8
"""Devices that are named of a list."""

Rows = Sequence[tuple[str, ...]]


def plan_text(spec: Spec, groups: Mapping[str, Sequence[str]], *, build: str, previous: str | None) -> str:
    """What a rollout would do."""
    total = sum(map(len, groups.values()))
    rows: list[tuple[str, ...]] = [("group", "devices", "of the fleet", "names")]
    rows += [(name, str(len(names)), f"{len(names) / total:.1%}", _some(names)) for name, names in groups.items()]
    gates = spec.gates
    stops = f"more than {_percent(gates.late)} late or {_percent(gates.errors)} failed requests, or "
    stops += f"more than {_percent(gates.failed)} of a group's devices failed"
    back = "every device that has it goes back" if spec.on_breach == "rollback" else "it pauses"
    if previous is None:
        back = "it stops: there is no build to go back to"
    now = f"now on {previous[:16]}" if previous else "now without a build"
    head = f"{spec.name}: {build[:16]} for {total} devices of class {spec.device_class}, {now}"
    soak = f"each group runs it for {spec.soak:g} s before the next begins"
    return "\n".join([head, f"{soak}; at {stops}, {back}", "", *_table(rows)])


def standing_text(standing: Standing, reports: Mapping[str, DeviceReport], problems: Sequence[str] = ()) -> str:
    """Where a rollout stands, and what its groups show."""
    why = f": {standing.why}" if standing.why else ""
    rows: list[tuple[str, ...]] = [
        ("group", "state", "devices", "installed", "failed", "silent", "requests", "late", "errors")
    ]
    for name, devices in standing.groups.items():
        figures = figures_of(standing, reports, devices)
        counts = (figures.devices, figures.installed, figures.failed, figures.silent, figures.requests)
        shares = [_percent(count.share) if count.total else "-" for count in (figures.late, figures.errors)]
        rows.append((name, standing.group_state(name), *map(str, counts), *shares))
    notes = [f"{name}: {report.problem}" for name, report in reports.items() if report.problem]
    return "\n".join([f"{standing.name} is {standing.state}{why}", "", *_table(rows), *problems, *notes[:SHOWN]])


def event_text(record: Mapping[str, object]) -> str:
    """One line of the journal."""
    at = time.strftime("%H:%M:%S", time.localtime(float(str(record["time"]))))
    more = [str(record[key]) for key in ("group", "why") if record.get(key)]
    return f"{at} {record['event']}{': ' if more else ''}{', '.join(more)}"


def _table(rows: Rows) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
