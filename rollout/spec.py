"""`rollout.yaml`: which build goes to which devices, group after group, and what stops it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from compiler.errors import UsageError, combine
from compiler.fleet.validate import validate
from compiler.fleet.yamlfile import Document, read_yaml

REST = "rest"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def _share(value: object) -> float:
    """`5%` as 0.05."""
    match = PERCENT.fullmatch(str(value))
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError("expected a share above 0% and at most 100%, such as 5%")
    return float(match[1]) / 100


def _share_or_rest(value: object) -> float:
    return 1.0 if value == REST else _share(value)


def _seconds(value: object) -> float:
    """`10m` as 600."""
    match = DURATION.fullmatch(str(value))
    if match is None:
        raise ValueError("expected a time with its unit: 30s, 10m, 2h or 1d")
    return float(match[1]) * UNITS_S[match[2]]


Share = Annotated[float, BeforeValidator(_share)]
Seconds = Annotated[float, BeforeValidator(_seconds)]


class OnBreach(StrEnum):
    """What a breached gate does."""

    ROLLBACK = "rollback"
    PAUSE = "pause"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Devices that get the build together: a share of the fleet, or those with certain labels.

    Args:
        name: Its name.
        share: Share of the whole fleet; `rest` for all that no group before it has.
        labels: Labels that a device must have; all that are left with them are meant.
    """

    name: Annotated[str, Field(min_length=1)]
    share: Annotated[float | None, BeforeValidator(lambda value: None if value is None else _share_or_rest(value))] = (
        None
    )
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What must hold in production.

    Args:
        late: Share of the requests that may be answered after their deadline.
        errors: Share of the requests that may fail.
        failed: Share of a group's devices on which the build may fail: a group is done when the others have it.
        requests: Requests that a group must have answered before the next begins.
    """

    late: Share = 0.01
    errors: Share = 0.01
    failed: Annotated[float, BeforeValidator(lambda value: 0.0 if str(value) == "0%" else _share(value))] = 0.0
    requests: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A rollout file.

    Args:
        schema: Of this file.
        name: Name of the rollout; its journal has it.
        fleet: Folder of the fleet, relative to the file: repository, keys, reports, journals.
        device_class: Device class that the build is for.
        build: Folder of the artifact, relative to the file; or the digest of a build that was exported before.
        groups: The groups, in their order.
        devices: Device → its labels; those that have reported where it is empty.
        soak: How long a group runs the build before the next begins.
        gates: What must hold.
        on_breach: What happens where it does not.
    """

    schema: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    fleet: str
    device_class: str
    build: str
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    soak: Seconds = 600.0
    gates: Gates = field(default_factory=Gates)
    on_breach: OnBreach = OnBreach.ROLLBACK


def read_spec(path: Path) -> tuple[Spec, Document]:
    """Reads a rollout file.

    Raises:
        UsageError: It cannot be read, or asks for what makes no sense; everything is said at once, with its line.
    """
    document = read_yaml(path, error=UsageError)
    spec, problems = validate(Spec, document.data, origin=document.origin, error=UsageError)
    if spec is not None:
        problems = [*_group_problems(spec, document)]
    if spec is None or problems:
        raise combine(problems)
    return spec, document


def _group_problems(spec: Spec, document: Document) -> list[UsageError]:
    problems, total = [], 0.0
    names = [group.name for group in spec.groups]
    for place, group in enumerate(spec.groups):
        where = document.origin.place(("groups", place))
        written = document.data["groups"][place] if isinstance(document.data["groups"], list) else {}
        is_rest = isinstance(written, Mapping) and written.get("share") == REST
        if (group.share is None) == (not group.labels):
            problems.append(UsageError("give one of `share` and `labels`", where=where))
        if names.index(group.name) != place:
            problems.append(UsageError(f"there is a group {group.name!r} before it", where=where))
        if is_rest and place + 1 < len(names):
            problems.append(UsageError("after `rest` nobody is left for the next group", where=where))
        total += 0.0 if is_rest or group.share is None else group.share
    if total > 1 + 1e-9:
        where = document.origin.place(("groups",))
        problems.append(UsageError(f"the shares sum to {total:.4g}, which is {100 * total:.4g} %", where=where))
    return problems


def divide(spec: Spec, devices: Mapping[str, Mapping[str, str]], *, where: str) -> dict[str, tuple[str, ...]]:
    """Which devices each group has: a share is drawn by a hash of the rollout's and the device's name.

    Args:
        spec: The rollout file.
        devices: Device → its labels.
        where: The file, for messages.

    Raises:
        UsageError: There are no devices, a group has none, or a device is in no group.
    """
    if not devices:
        raise UsageError("there are no devices: none is listed, and none has reported", where=where)
    left = sorted(devices, key=lambda name: hashlib.sha256(f"{spec.name}\0{name}".encode()).digest())
    groups: dict[str, tuple[str, ...]] = {}
    for group in spec.groups:
        groups[group.name] = tuple(_members(group, left, devices))
        left = [name for name in left if name not in groups[group.name]]
    problems = [
        UsageError(f"the group {name!r} has no device: it would be skipped", where=where)
        for name, members in groups.items()
        if not members
    ]
    if left:
        text = f"{len(left)} of {len(devices)} devices are in no group: {', '.join(sorted(left)[:5])}"
        problems.append(UsageError(text, where=where, remedy="Add a last group with `share: rest`."))
    if problems:
        raise combine(problems)
    return groups


def _members(group: Group, left: Sequence[str], devices: Mapping[str, Mapping[str, str]]) -> Sequence[str]:
    if group.share is None:
        return [name for name in left if group.labels.items() <= dict(devices[name]).items()]
    count = -(-round(1e6 * group.share * len(devices)) // 1_000_000)  # rounded up: 5 % of 10 devices is one
    return left[:count]
