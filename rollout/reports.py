"""What the devices say: one file a device, read anew at each look; one that makes no sense counts as silence.

Where the fleet's folder has `devices/`, a report counts only if it is signed by the key in `devices/DEVICE.pub`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, unquote

from pydantic import Field

from compiler.artifact.adapter import parse
from compiler.errors import DataError
from rollout.device.signing import open_report

Natural = Annotated[int, Field(ge=0)]

MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class GateReport:
    """A gate on a device, as its exporter has it.

    Args:
        limit: The limit, in the gate's unit.
        observed: The figure; NaN where the exporter has none.
    """

    limit: float = math.nan
    observed: float = math.nan


@dataclass(frozen=True)
class DeviceReport:
    """What a device says of itself.

    Args:
        device: Its name.
        device_class: Its device class.
        build: Digest of the build that it uses; None before the first.
        state: Mender's word.
        why: Why it failed.
        problem: Why it knows nothing new: the repository cannot be read or trusted.
        rollout: The rollout that it follows.
        time: When it said so, in seconds since 1970, by its clock.
        requests: Requests since it switched.
        late: Those that were answered after their deadline, or refused because they would be.
        errors: Those that failed.
        gates: Gate → its limit and figure.
    """

    device: str
    device_class: str
    build: str | None
    state: str
    why: str = ""
    problem: str = ""
    rollout: str = ""
    time: float = 0.0
    requests: Natural = 0
    late: Natural = 0
    errors: Natural = 0
    gates: Mapping[str, GateReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.late > self.requests or self.errors > self.requests:
            raise DataError(f"{self.late} late and {self.errors} failed of {self.requests} requests")


def read_reports(fleet: Path) -> tuple[dict[str, DeviceReport], list[str]]:
    """Device → its report, and what is wrong with those that cannot be read or believed.

    Args:
        fleet: Folder of the fleet: `reports/`, and `devices/` where reports must be signed.
    """
    reports, problems = dict[str, DeviceReport](), []
    for path in sorted((fleet / "reports").glob("[!.]*.json")):
        try:
            report = parse(DeviceReport, open_report(_read(path), _key_of(fleet, unquote(path.stem))))
        except (OSError, ValueError, DataError) as error:
            problems.append(f"the report of {path.stem} makes no sense: {error}")
            continue
        if unquote(path.stem) != report.device:
            problems.append(f"the report of {path.stem} is of another device: {report.device}")
            continue
        reports[report.device] = report
    return reports, problems


def _key_of(fleet: Path, device: str) -> bytes | None:
    """The public key of a device; None where the fleet has keys of none."""
    keys = fleet / "devices"
    if not keys.is_dir():
        return None
    try:
        return (keys / f"{quote(device, safe='')}.pub").read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"the fleet has no key for it in {keys}") from error


def _read(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    value = json.loads(raw[:MAX_BYTES])
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


def of_devices(reports: Mapping[str, DeviceReport], devices: Iterable[str], build: str) -> list[DeviceReport]:
    """Reports of those devices that use a build."""
    return [reports[name] for name in devices if name in reports and reports[name].build == build]
