"""What a rollout decides next, from its journal and what the devices say; and the loop that does it.

Decisions stand in the journal before the devices are told of them, so that whoever is killed in between goes on where
it was: the assignment that devices read follows from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact.adapter import to_json
from compiler.artifact.schema.gate import GateUnit, is_floor
from compiler.errors import DataError, UsageError
from compiler.fleet.yamlfile import Document
from rollout.journal import ENDS, Event, Journal, Standing, State
from rollout.limits import divide_alpha
from rollout.reports import DeviceReport, of_devices, read_reports
from rollout.repository import FleetRepository
from rollout.shares import Count, exceeds
from rollout.spec import Gates, OnBreach, Spec, divide

FAILURE = "failure"
DONE = ("success", "already-installed")
"""States of a device that has the build and keeps it."""


@dataclass(frozen=True)
class Figures:
    """What a group, or all devices together, show.

    Args:
        devices: Number of devices.
        installed: Those that use the build and keep it.
        failed: Those that refused it or went back.
        silent: Those that have not said anything of this rollout.
        requests: Requests that they answered with it.
        late: Share of those that were late.
        errors: Share of those that failed.
    """

    devices: int
    installed: int
    failed: int
    silent: int
    late: Count
    errors: Count

    @property
    def requests(self) -> int:
        """Requests that were answered with the build."""
        return self.late.total


class Controller:
    """One rollout.

    Args:
        fleet: Folder of the fleet.
        name: Name of the rollout.
        keys: Folder of the private keys; `keys` in the fleet's by default.
    """

    def __init__(self, fleet: Path, name: str, *, keys: Path | None = None) -> None:
        self.fleet, self.journal = fleet, journal_of(fleet, name)
        self.repository = FleetRepository(fleet, keys)

    def create(self, spec: Spec, build: str, document: Document) -> Standing:
        """Begins a journal.

        Raises:
            UsageError: The groups do not fit the devices.
            DataError: There is a rollout of that name, another one runs, or the build is what the devices have.
        """
        where = document.origin.path
        if self.journal.path.exists():
            raise DataError(
                f"the rollout {spec.name!r} was begun already",
                where=str(self.journal.path),
                remedy=f"`fleetc rollout resume {where}` goes on with it; a new one needs another name.",
            )
        for other in sorted(self.journal.path.parent.glob("*.jsonl")):
            standing = Journal(other).standing()
            if standing.device_class == spec.device_class and standing.state not in ENDS:
                raise DataError(
                    f"the rollout {standing.name!r} of class {spec.device_class!r} is {standing.state}",
                    where=str(other),
                    remedy="Finish it or roll it back first: a device can follow one rollout.",
                )
        previous = self.repository.assignment(spec.device_class).get("default")
        if build not in self.repository.builds(spec.device_class):
            remedy = "`fleetc export --tuf` signs it for the fleet."
            raise DataError(f"the build {build[:16]} is not in the fleet's repository", where=where, remedy=remedy)
        if build == previous:
            raise DataError(
                f"the candidate {build[:16]} is the current build: there is nothing to roll out",
                where=where,
                remedy="Name another `build`.",
            )
        groups = divide(spec, self.devices(spec), where=where)
        facts = {"name": spec.name, "device_class": spec.device_class, "build": build, "previous": previous}
        self.journal.append(Event.CREATED, expected=0, groups=groups, spec=to_json(spec), **facts)
        return self.journal.standing()

    def devices(self, spec: Spec) -> Mapping[str, Mapping[str, str]]:
        """Device → its labels: those of the file, or those that have reported."""
        if spec.devices:
            return spec.devices
        reports, _ = read_reports(self.fleet)
        return {name: {} for name, report in reports.items() if report.device_class == spec.device_class}

    def tick(self) -> Standing:
        """One look: decides what is to be decided, and tells the devices."""
        standing = self.journal.standing()
        while True:
            self.repository.assign(standing.device_class, standing.assignment)
            step = decide(standing, self.reports(), time.time(), gate_units=self._gates(standing))
            if step is None:
                return standing
            event, facts = step
            # others may have paused it meanwhile: then their line comes first, and it is decided anew
            self.journal.append(event, expected=standing.lines, **facts)
            standing = self.journal.standing()

    def run(self, *, poll_s: float, say: Callable[[Standing], None]) -> Standing:
        """Looks again and again until the rollout ends or is paused."""
        said = 0
        while True:
            standing = self.tick()
            if standing.lines > said:
                say(standing)
                said = standing.lines
            if standing.state in (*ENDS, State.PAUSED, State.READY):
                return standing
            time.sleep(poll_s)

    def reports(self) -> dict[str, DeviceReport]:
        """What the devices said last."""
        return read_reports(self.fleet)[0]

    def _gates(self, standing: Standing) -> Mapping[str, Mapping[str, Any]]:
        gates = self.repository.builds(standing.device_class).get(standing.build, {}).get("gates", {})
        return gates if isinstance(gates, Mapping) else {}


def journal_of(fleet: Path, name: str) -> Journal:
    """The journal of a rollout."""
    return Journal(fleet / "rollouts" / f"{name}.jsonl")


def decide(
    standing: Standing,
    reports: Mapping[str, DeviceReport],
    now: float,
    *,
    gate_units: Mapping[str, Mapping[str, Any]],
) -> tuple[Event, dict[str, Any]] | None:
    """What is to be decided now; None while nothing is.

    Args:
        standing: Where the rollout stands.
        reports: What the devices said last.
        now: Seconds since 1970.
        gate_units: Gate of the candidate → its `unit` and `limit`, as the manifest has them.
    """
    spec = _spec_of(standing)
    if standing.state == State.STOPPING:
        away = [name for name in standing.exposed if not _is_back(reports.get(name), standing)]
        return None if away and standing.previous is not None else (Event.STOPPED, {})
    if standing.state != State.RUNNING:
        return None
    if why := breach(standing, reports, spec.gates, gate_units):
        event = Event.ROLLBACK if spec.on_breach == OnBreach.ROLLBACK else Event.PAUSED
        return event, {"why": why}
    waiting = [name for name in standing.groups if name not in standing.finished]
    if not waiting:
        return Event.FINISHED, {}
    group = waiting[0]
    if group not in standing.started:
        return Event.GROUP_STARTED, {"group": group, "devices": list(standing.groups[group])}
    figures = figures_of(standing, reports, standing.groups[group])
    if group not in standing.installed:
        # what may fail need not succeed; whether more failed was judged above
        is_done = figures.installed + figures.failed == figures.devices
        return (Event.GROUP_INSTALLED, {"group": group}) if is_done else None
    has_soaked = now - standing.installed[group] >= spec.soak
    return (Event.GROUP_FINISHED, {"group": group}) if has_soaked and figures.requests >= spec.gates.requests else None


def breach(
    standing: Standing,
    reports: Mapping[str, DeviceReport],
    gates: Gates,
    gate_units: Mapping[str, Mapping[str, Any]],
) -> str:
    """Which gate is breached, in words; empty where none is."""
    whole = figures_of(standing, reports, standing.exposed)
    alphas = divide_alpha(1, has_latency=True)
    for name, count, limit, alpha in (
        ("were late", whole.late, gates.late, alphas.late),
        ("failed", whole.errors, gates.errors, alphas.other),
    ):
        if count.total and exceeds(count, limit, alpha=alpha):
            shown = f"{100 * count.share:.2g} % of {count.total} requests"
            return f"{shown} {name}, and the limit is {100 * limit:.3g} %"
    for group in standing.started:
        devices = standing.groups[group]
        beyond = [(name, why) for name in devices if (why := _gate_beyond(reports.get(name), standing, gate_units))]
        failed = [(name, _why(reports[name])) for name in devices if _has_failed(reports.get(name), standing)]
        bad = dict(beyond + failed)
        if len(bad) > gates.failed * len(devices):
            name, why = next(iter(bad.items()))
            return f"{len(bad)} of {len(devices)} devices of {group} failed: {name}: {why}"
    return ""


def figures_of(standing: Standing, reports: Mapping[str, DeviceReport], devices: Sequence[str]) -> Figures:
    """What some of the devices show."""
    users = [one for one in of_devices(reports, devices, standing.build) if one.rollout == standing.name]
    total = sum(one.requests for one in users)
    failed = [name for name in devices if _has_failed(reports.get(name), standing)]
    silent = [name for name in devices if name not in reports or reports[name].rollout != standing.name]
    return Figures(
        devices=len(devices),
        installed=sum(one.state in DONE for one in users),
        failed=len(failed),
        silent=len([name for name in silent if name not in failed]),
        late=Count(total, sum(one.late for one in users)),
        errors=Count(total, sum(one.errors for one in users)),
    )


def _has_failed(report: DeviceReport | None, standing: Standing) -> bool:
    """Whether the device refused this build or went back from it; who has no repository has not failed it."""
    return report is not None and report.state == FAILURE and report.rollout == standing.name


def _why(report: DeviceReport) -> str:
    return report.why or "no reason was given"


def _is_back(report: DeviceReport | None, standing: Standing) -> bool:
    """Whether a device uses the build before again; one that never took the candidate is there, too."""
    return report is not None and report.build != standing.build


def _gate_beyond(report: DeviceReport | None, standing: Standing, gate_units: Mapping[str, Mapping[str, Any]]) -> str:
    """A gate of the build that the device's exporter shows beyond its limit."""
    if report is None or report.build != standing.build:
        return ""
    for name, gate in report.gates.items():
        known = gate_units.get(name)
        if known is None:
            continue
        limit, unit = float(known["limit"]), GateUnit(known["unit"])
        is_beyond = gate.observed < limit if is_floor(unit) else gate.observed > limit
        if is_beyond:
            return f"gate {name}: {gate.observed:g} {unit}, limit {limit:g}"
    return ""


def _spec_of(standing: Standing) -> Spec:
    spec = dict(standing.spec)
    return Spec(
        schema=1,
        name=standing.name,
        fleet=spec["fleet"],
        device_class=standing.device_class,
        build=standing.build,
        groups=(),
        soak=spec["soak"],
        gates=Gates(**spec["gates"]),
        on_breach=OnBreach(spec["on_breach"]),
    )


def refuse_other_plan(standing: Standing, spec: Spec, *, where: str) -> None:
    """Refuses a rollout file that was changed since the rollout began.

    Raises:
        UsageError: It was.
    """
    if to_json(spec) != dict(standing.spec):
        raise UsageError(
            f"the file was changed since the rollout {spec.name!r} began",
            where=where,
            remedy="Restore it, or give a new rollout another name.",
        )
