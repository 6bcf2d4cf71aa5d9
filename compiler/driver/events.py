"""What happens in a build, as values: the driver hands each one to a sink as it happens.

A sink is any function of one event. The command line has two, the terminal and JSON lines; the text that people read is
made there. Every event says what it is in `event`, so that its JSON can be read back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from compiler.store import StageName


class Level(StrEnum):
    """How much a note matters."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class DeviceStarted:
    """Work on a device class begins: it is number `number` of `count`, from 1."""

    device: str
    number: int
    count: int
    event: Literal["device-started"] = "device-started"


@dataclass(frozen=True)
class DeviceFinished:
    """Work on a device class is over.

    Args:
        device: Its name.
        status: `delivered`, `deferred`, `failed`, or `border` where only the border model was asked for.
        error: Why it failed, in one line; empty otherwise.
    """

    device: str
    status: str
    error: str = ""
    event: Literal["device-finished"] = "device-finished"


@dataclass(frozen=True)
class StageBegan:
    """A stage begins; until its end, stages that begin are part of it."""

    device: str
    stage: StageName
    event: Literal["stage-began"] = "stage-began"


@dataclass(frozen=True)
class StageEnded:
    """A stage is over, whether it succeeded or not; `seconds` of wall time, stages inside it included."""

    device: str
    stage: StageName
    seconds: float
    event: Literal["stage-ended"] = "stage-ended"


@dataclass(frozen=True)
class TrialStarted:
    """A candidate is tried.

    Args:
        device: The device class.
        number: The trial's place in the search, from 1.
        precision: Its precision.
        purpose: Why it is tried, as the manifest says it.
        has_options: Whether the quantizer has other options than its defaults.
        kept_float: How many layers are kept in float.
        pruned: Share of the multiply-accumulates that is to be cut, 0 to 1.
        target: Through which target; empty where the device has one.
    """

    device: str
    number: int
    precision: str
    purpose: str
    has_options: bool = False
    kept_float: int = 0
    pruned: float = 0.0
    target: str = ""
    event: Literal["trial-started"] = "trial-started"


@dataclass(frozen=True)
class TrialJudged:
    """A candidate was judged: `status` and `target` as the manifest says them, and `why` it is not delivered, if so."""

    device: str
    number: int
    precision: str
    purpose: str
    status: str
    why: str = ""
    target: str = ""
    event: Literal["trial-judged"] = "trial-judged"


@dataclass(frozen=True)
class Note:
    """A message for the reader; `device` is empty where it is about the whole command."""

    device: str
    text: str
    level: Level = Level.INFO
    event: Literal["note"] = "note"


@dataclass(frozen=True)
class Progress:
    """How far the whole build is: candidates made of all planned ones, and an estimate of the time that is left.

    Searches may add candidates, so the estimate is one of the planned work only; None before the first is made.
    """

    done: int
    total: int
    seconds_left: float | None
    event: Literal["progress"] = "progress"


Event: TypeAlias = (
    DeviceStarted | DeviceFinished | StageBegan | StageEnded | TrialStarted | TrialJudged | Note | Progress
)
Sink: TypeAlias = Callable[[Event], None]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def ignore(event: Event) -> None:
    """The sink of a caller who does not look."""


def event_json(event: Event) -> str:
    """One event as one line of JSON."""
    return _ADAPTER.dump_json(event).decode()


def event_of(line: str | bytes) -> Event:
    """The event that `event_json` wrote. Raises pydantic.ValidationError (a ValueError) where it is none."""
    return _ADAPTER.validate_json(line)


def events_schema() -> dict[str, Any]:
    """The JSON schema of one event."""
    return _ADAPTER.json_schema(mode="serialization")
