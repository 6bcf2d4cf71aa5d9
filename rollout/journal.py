"""The journal of a rollout: what was decided, one line after another, never changed.

Each line names the digest of the line before, so that a line that was changed or taken out is noticed. Whoever is
killed while it writes leaves a last line without its end: it was not decided, and is dropped. Where a rollout stands is
read from its journal alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from compiler.errors import DataError
from compiler.store.locks import exclusive


class State(StrEnum):
    """Where a rollout stands, in hawkBit's words."""

    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"


ENDS = (State.STOPPED, State.FINISHED)


class GroupState(StrEnum):
    """Where a group stands, in hawkBit's words."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    FINISHED = "finished"
    ERROR = "error"


class Event(StrEnum):
    """What is decided."""

    CREATED = "created"
    STARTED = "started"
    GROUP_STARTED = "group started"
    GROUP_INSTALLED = "group installed"
    GROUP_FINISHED = "group finished"
    BREACHED = "breached"
    PAUSED = "paused"
    RESUMED = "resumed"
    ROLLBACK = "rollback"
    STOPPED = "stopped"
    FINISHED = "finished"


@dataclass(frozen=True)
class Standing:
    """Where a rollout stands.

    Args:
        name: Its name.
        device_class: Whose devices.
        build: Digest of the candidate.
        previous: Digest of the build before; None where there was none.
        groups: Group → its devices, in their order.
        state: Where it stands.
        started: Groups that have the build: name → time, in seconds since 1970.
        installed: Groups whose devices all have it: name → time.
        finished: Groups that are done.
        why: Why it is paused or stopped; empty otherwise.
        spec: The rollout file as it was.
        lines: Lines of the journal.
    """

    name: str
    device_class: str
    build: str
    previous: str | None
    groups: Mapping[str, Sequence[str]]
    state: State = State.READY
    started: Mapping[str, float] = field(default_factory=dict)
    installed: Mapping[str, float] = field(default_factory=dict)
    finished: Sequence[str] = ()
    why: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    lines: int = 0

    @property
    def exposed(self) -> tuple[str, ...]:
        """Devices that were told to take the build."""
        return tuple(device for name in self.started for device in self.groups[name])

    @property
    def assignment(self) -> dict[str, Any]:
        """What the devices are told."""
        told: dict[str, Any] = {"schema": 1, "rollout": self.name}
        if self.state == State.FINISHED:
            return {**told, "default": self.build, "devices": {}}
        if self.state in (State.STOPPING, State.STOPPED):
            return {**told, "rollout": f"{self.name} (rolled back)", "default": self.previous, "devices": {}}
        return {**told, "default": self.previous, "devices": dict.fromkeys(sorted(self.exposed), self.build)}

    def group_state(self, name: str) -> GroupState:
        """Where a group stands."""
        if name in self.finished:
            return GroupState.FINISHED
        if name not in self.started:
            return GroupState.SCHEDULED
        return GroupState.ERROR if self.state in (State.STOPPING, State.STOPPED) else GroupState.RUNNING


class Journal:
    """One rollout's journal.

    Args:
        path: `rollouts/NAME.jsonl` in the fleet's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def standing(self) -> Standing:
        """Where the rollout stands.

        Raises:
            DataError: There is no such rollout, or the journal was changed.
        """
        records = self._records()
        if not records:
            raise DataError(
                f"there is no rollout {self.path.stem!r}",
                where=str(self.path),
                remedy="`fleetc rollout start` begins it.",
            )
        standing = _created(records[0])
        for record in records[1:]:
            standing = _after(standing, record)
        return replace(standing, lines=len(records))

    def events(self) -> list[dict[str, Any]]:
        """Every line, as it was written."""
        return self._records()

    def append(self, event: Event, *, expected: int | None = None, **facts: Any) -> bool:
        """Writes a line. Whether it was written: not, if others have written since `expected` lines."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path.with_suffix(".lock"), purpose="a line of the journal", limit_s=30.0):
            raw = self._whole()
            lines = raw.splitlines(keepends=True)
            if expected is not None and len(lines) != expected:
                return False
            record = {"event": str(event), "time": time.time(), "after": _digest(lines), **facts}
            with self.path.open("ab") as file:
                file.truncate(len(raw))  # the end of one who was killed while it wrote
                file.write(json.dumps(record).encode() + b"\n")  # keys as they come: groups have an order
                file.flush()
                os.fsync(file.fileno())
            return True

    def _records(self) -> list[dict[str, Any]]:
        lines = self._whole().splitlines(keepends=True)
        records = []
        for place, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise self._changed(place) from error
            if record.get("after") != _digest(lines[:place]):
                raise self._changed(place)
            records.append(record)
        return records

    def _whole(self) -> bytes:
        """All complete lines."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        return raw[: raw.rfind(b"\n") + 1]

    def _changed(self, place: int) -> DataError:
        return DataError(
            f"line {place + 1} of the journal is not what was written",
            where=str(self.path),
            remedy="Restore the file; where a rollout stands is known from it alone.",
        )


def _digest(lines: Sequence[bytes]) -> str:
    return hashlib.sha256(lines[-1]).hexdigest() if lines else ""


def _created(record: Mapping[str, Any]) -> Standing:
    keys = ("name", "device_class", "build", "previous", "groups", "spec")
    return Standing(**{key: record[key] for key in keys})


def _after(standing: Standing, record: Mapping[str, Any]) -> Standing:
    """Where it stands after one event more."""
    event, at, why = Event(record["event"]), float(record["time"]), str(record.get("why", ""))
    group = str(record.get("group", ""))
    states = {
        Event.STARTED: State.RUNNING,
        Event.RESUMED: State.RUNNING,
        Event.PAUSED: State.PAUSED,
        Event.ROLLBACK: State.STOPPING,
        Event.STOPPED: State.STOPPED,
        Event.FINISHED: State.FINISHED,
    }
    if event in states:
        reason = why or (standing.why if event == Event.STOPPED else "")
        return replace(standing, state=states[event], why=reason)
    if event == Event.GROUP_STARTED:
        return replace(standing, started={**standing.started, group: at})
    if event == Event.GROUP_INSTALLED:
        return replace(standing, installed={**standing.installed, group: at})
    if event == Event.GROUP_FINISHED:
        return replace(standing, finished=(*standing.finished, group))
    return replace(standing, why=why)
