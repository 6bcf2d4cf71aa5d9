"""What clients, workers and the server say to each other: requests, views of jobs and devices, and their states."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass

from compiler.plan import SearchEffort

_FROM_OUTSIDE = ConfigDict(extra="forbid")

Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
DeviceName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Label: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._:-]{0,63}$")]
ProjectName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
FilePath: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=400)]
_Word: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,64}$")]
_Seconds: TypeAlias = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]

MAX_FILES = 50_000
MAX_FLEET_TEXT = 1 << 20
"""As much as the reader of fleet files takes."""


class Scope(StrEnum):
    """What a key may do in its project; `admin` may do everything in every project."""

    READ = "read"
    SUBMIT = "submit"
    CODE = "code"
    WORKER = "worker"
    ADMIN = "admin"


class DeviceState(StrEnum):
    """Where the build of one device class is."""

    QUEUED = "queued"
    WAITING_FOR_WORKER = "waiting_for_worker"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class JobState(StrEnum):
    """Where a job is: what its devices come to."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset(
    {DeviceState.SUCCEEDED, DeviceState.REFUSED, DeviceState.FAILED, DeviceState.CANCELLED, DeviceState.LOST}
)


def job_state(states: list[DeviceState]) -> JobState:
    """What the states of a job's devices come to."""
    if not all(state in FINAL for state in states):
        waiting = {DeviceState.QUEUED, DeviceState.WAITING_FOR_WORKER}
        return JobState.QUEUED if set(states) <= waiting else JobState.RUNNING
    if all(state is DeviceState.SUCCEEDED for state in states):
        return JobState.SUCCEEDED
    if DeviceState.CANCELLED in states:
        return JobState.CANCELLED
    return JobState.PARTIAL if DeviceState.SUCCEEDED in states else JobState.FAILED


@dataclass(frozen=True, config=_FROM_OUTSIDE)
class FleetText:
    """A fleet file: its name and its text."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,90}\.ya?ml$")]
    text: Annotated[str, StringConstraints(max_length=MAX_FLEET_TEXT)]


@dataclass(frozen=True, config=_FROM_OUTSIDE)
class BuildSettings:
    """The options of `fleetc build` that a job may set; what is left out is as on the command line."""

    targets: Annotated[tuple[_Word, ...], Field(max_length=20)] = ()
    precision: _Word = ""
    prune: _Word = ""
    recover_minutes: Annotated[float | None, Field(gt=0, le=10_000, allow_inf_nan=False)] = None
    skip_passes: Annotated[tuple[_Word, ...], Field(max_length=100)] = ()
    search: SearchEffort = SearchEffort.QUICK
    search_budget: Annotated[int, Field(ge=1, le=10_000)] = 24
    repeat: Annotated[int, Field(ge=0, le=10_000)] = 20
    strict: bool = False


@dataclass(frozen=True, config=_FROM_OUTSIDE)
class JobRequest:
    """A fleet to build.

    Args:
        fleet: The fleet file.
        files: Path relative to the fleet file → SHA-256 of every file it names; they are uploaded before.
        devices: Names of the device classes to build; all if empty.
        settings: Options of the build.
        labels: Labels that a worker must have, beside those that the devices need.
        priority: Higher ones begin earlier.
        deadline_running_s: Longest time one attempt may run.
        deadline_queued_s: Longest time a device may wait for its first attempt.
        reproduce: Whether what was delivered of these inputs is built again, from nothing and on another worker, to be
            compared and signed a second time.
    """

    fleet: FleetText
    files: Annotated[dict[FilePath, Digest], Field(max_length=MAX_FILES)]
    devices: Annotated[tuple[DeviceName, ...], Field(max_length=1000)] = ()
    settings: BuildSettings = Field(default_factory=BuildSettings)
    labels: Annotated[tuple[Label, ...], Field(max_length=16)] = ()
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    deadline_running_s: _Seconds | None = None
    deadline_queued_s: _Seconds | None = None
    reproduce: bool = False


@dataclass(frozen=True)
class DeviceView:
    """One device class of a job.

    Args:
        name: The device class.
        state: Where its build is.
        labels: Labels that its worker needs.
        waiting_for: Labels that no worker has, where that is what it waits for.
        position: Place in the queue, from 1; None where it does not wait.
        estimate_s: About how long until it begins, by earlier builds; None where nothing is known.
        attempt: Number of the attempt, from 1; 0 before the first.
        worker: Who runs it, or ran it last.
        stage: Stage of the build that runs.
        done: Candidates made.
        total: Candidates planned; 0 before that is known.
        seconds: Wall time of the last attempt; None before its end.
        exit_code: Exit code of its build; None before the end.
        error: Why it failed, as `fleetc --json` says it.
        figures: Row of the fleet's table: precision, bytes, latency and so on.
        manifest: SHA-256 of the artifact's manifest; empty where there is none.
        size: Bytes of the artifact as a tar file.
        original: The job whose build this one repeats; empty where it repeats none.
    """

    name: str
    state: DeviceState
    labels: tuple[str, ...]
    waiting_for: tuple[str, ...] = ()
    position: int | None = None
    estimate_s: float | None = None
    attempt: int = 0
    worker: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float | None = None
    exit_code: int | None = None
    error: Mapping[str, Any] | None = None
    figures: Mapping[str, Any] | None = None
    manifest: str = ""
    size: int = 0
    original: str = ""


@dataclass(frozen=True)
class JobView:
    """One job; times are seconds since 1970."""

    id: str
    project: str
    fleet: str
    state: JobState
    exit_code: int | None
    created: float
    finished: float | None
    priority: int
    pinned: bool
    cancel_requested: bool
    devices: tuple[DeviceView, ...]


@dataclass(frozen=True)
class WorkerView:
    """A worker that is connected: its labels, how many builds it runs at a time, and how many it runs now."""

    name: str
    labels: tuple[str, ...]
    slots: int
    running: int
    version: str
    seen: float


@dataclass(frozen=True)
class Order:
    """What a worker is to build: one device class of a job.

    Args:
        project: Whose cache it uses.
        device: The device class.
        fleet: The fleet file.
        files: As in `JobRequest`.
        settings: Options of the build.
        deadline_s: Longest time it may run; None for ever.
        trusted_key: The server's public key, PEM: entries of the shared cache that it has signed are used.
        from_nothing: Whether it must not use what earlier builds left on the worker.
    """

    project: str
    device: str
    fleet: FleetText
    files: dict[str, str]
    settings: BuildSettings
    deadline_s: float | None
    trusted_key: str
    from_nothing: bool = False


@dataclass(frozen=True, config=_FROM_OUTSIDE)
class News:
    """What an attempt reports while it runs: events as the compiler writes them, one JSON document each."""

    events: Annotated[tuple[Annotated[str, StringConstraints(max_length=1 << 16)], ...], Field(max_length=1000)] = ()


@dataclass(frozen=True)
class Answer:
    """What the server answers to news: whether the attempt is to stop."""

    stop: bool


@dataclass(frozen=True, config=_FROM_OUTSIDE)
class Outcome:
    """How an attempt ended.

    Args:
        exit_code: Of its build; below 0 the signal that ended it, None where it was stopped or never began.
        error: As `fleetc build --json` says it.
        figures: The device's row of `fleetc build --json`.
        seconds: Wall time.
    """

    exit_code: int | None
    error: dict[str, Any] | None = None
    figures: dict[str, Any] | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
