"""Jobs, their devices and attempts, in the tables: what is asked for, and what has become of it.

An attempt is a number of a device. Whatever an attempt writes is refused once its number is no longer the device's, so
that a worker that was given up cannot change what a later attempt has done.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from compiler.errors import Interrupted
from server.keys import Principal, digest_of
from server.schema import FINAL, DeviceState, JobRequest, Outcome, job_state
from server.tables import Database, attempts, devices, events, jobs

REQUESTS: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
WAITING = (DeviceState.QUEUED, DeviceState.WAITING_FOR_WORKER)
GIVEN_UP, RUNNING, ENDED = "given-up", "running", "ended"
"""States of an attempt."""

RETRIED = frozenset({"ToolchainFailed", "StorageError"})
"""Failures that another attempt may not meet: a toolchain that crashed, a disk that was full."""

MOST_FAILURES = 2
"""Attempts that may end in one of those before the device has failed."""


class OtherBody(Exception):
    """An idempotency key is used again for another request."""


class Superseded(Exception):
    """An attempt reports that is no longer the device's."""


@dataclass(frozen=True)
class Attempt:
    """An attempt that reports, as the tables have it."""

    id: str
    job: str
    device: str
    number: int
    worker: str


@dataclass(frozen=True)
class Waiting:
    """A device that waits for a worker, in the order of the queue."""

    job: str
    name: str
    project: str
    fleet: str
    labels: tuple[str, ...]
    waiting_for: tuple[str, ...]
    created: float
    attempt: int
    deadline_queued_s: float | None


def add_job(
    database: Database,
    request: JobRequest,
    who: Principal,
    *,
    labels: Mapping[str, Sequence[str]],
    idempotency_key: str | None = None,
) -> tuple[str, bool]:
    """Puts a job into the queue.

    Args:
        database: The tables.
        request: What is asked for; it was planned, so it can be obeyed.
        who: Whose job it is.
        labels: Device class → the labels that its worker needs, in the fleet's order.
        idempotency_key: The client's; the same key and request give the same job.

    Returns:
        The job's id, and whether it is new.

    Raises:
        OtherBody: The idempotency key was used for another request.
    """
    identity, now, text = secrets.token_hex(6), time.time(), REQUESTS.dump_json(request).decode()
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = {
        "id": identity,
        "project": who.project,
        "key_id": who.key,
        "fleet": request.fleet.name,
        "request": text,
        "request_digest": digest,
        "idempotency_key": idempotency_key,
        "created": now,
        "priority": request.priority,
        "deadline_running_s": request.deadline_running_s,
        "deadline_queued_s": request.deadline_queued_s,
        "pinned": False,
    }
    try:
        with database.writing() as connection:
            connection.execute(insert(jobs).values(row))
            for place, (name, needed) in enumerate(labels.items()):
                values = {"job": identity, "name": name, "place": place, "labels": list(needed), "waiting_for": []}
                connection.execute(insert(devices).values(state=DeviceState.QUEUED, **values))
            note(connection, identity, {"event": "job-queued", "devices": list(labels)})
    except IntegrityError:
        earlier = find_by_idempotency_key(database, who.project, str(idempotency_key), digest)
        if earlier is None:
            raise
        return earlier, False
    return identity, True


def request_digest(request: JobRequest) -> str:
    """What tells one request from another."""
    return hashlib.sha256(REQUESTS.dump_json(request)).hexdigest()


def find_by_idempotency_key(database: Database, project: str, key: str, digest: str) -> str | None:
    """The job that was submitted with an idempotency key; None where there is none.

    Raises:
        OtherBody: It was another request.
    """
    with database.reading() as connection:
        row = connection.execute(
            select(jobs.c.id, jobs.c.request_digest).where(jobs.c.project == project, jobs.c.idempotency_key == key)
        ).first()
    if row is not None and row.request_digest != digest:
        raise OtherBody
    return row.id if row is not None else None


def note(connection: Connection, job: str, payload: Mapping[str, Any], *, device: str = "", attempt: int = 0) -> None:
    """Appends an event to a job's log."""
    values = {"job": job, "at": time.time(), "device": device, "attempt": attempt, "kind": payload["event"]}
    text = json.dumps({"device": device, "attempt": attempt, **payload}, ensure_ascii=False)
    connection.execute(insert(events).values(text=text, **values))


def queue(connection: Connection) -> list[Waiting]:
    """Every device that waits, the next first."""
    rows = connection.execute(
        select(
            devices.c.job,
            devices.c.name,
            devices.c.labels,
            devices.c.waiting_for,
            devices.c.attempt,
            jobs.c.project,
            jobs.c.fleet,
            jobs.c.created,
            jobs.c.deadline_queued_s,
        )
        .join(jobs, jobs.c.id == devices.c.job)
        .where(devices.c.state.in_(WAITING))
        .order_by(jobs.c.priority.desc(), jobs.c.created, jobs.c.id, devices.c.place)
    )
    return [
        Waiting(
            job=row.job,
            name=row.name,
            project=row.project,
            fleet=row.fleet,
            labels=tuple(row.labels),
            waiting_for=tuple(row.waiting_for),
            created=row.created,
            attempt=row.attempt,
            deadline_queued_s=row.deadline_queued_s,
        )
        for row in rows
    ]


def running(connection: Connection) -> Sequence[Row[Any]]:
    """Every attempt that runs."""
    return connection.execute(select(attempts).where(attempts.c.state == RUNNING)).all()


def begin_attempt(database: Database, device: Waiting, worker: str) -> tuple[Attempt, str] | None:
    """Turns a device that waits into an attempt on a worker.

    Returns:
        The attempt and its token, which is not stored; None where the device no longer waits.
    """
    number, now, token = device.attempt + 1, time.time(), secrets.token_urlsafe(32)
    attempt = Attempt(uuid.uuid4().hex, device.job, device.name, number, worker)
    with database.writing() as connection:
        is_taken = connection.execute(
            update(devices)
            .where(devices.c.job == device.job, devices.c.name == device.name)
            .where(devices.c.state.in_(WAITING), devices.c.attempt == device.attempt)
            .values(state=DeviceState.RUNNING, attempt=number, worker=worker, waiting_for=[], stage="", done=0, total=0)
        ).rowcount
        if not is_taken:
            return None
        values = {"id": attempt.id, "job": device.job, "device": device.name, "number": number, "worker": worker}
        connection.execute(
            insert(attempts).values(token_digest=digest_of(token), state=RUNNING, started=now, heard=now, **values)
        )
        _note_state(connection, attempt.job, attempt.device, number, DeviceState.RUNNING, worker=worker)
    return attempt, token


def find_attempt(database: Database, identity: str, token: str) -> Attempt:
    """The attempt that reports with a token.

    Raises:
        Superseded: It is none that runs, or the token is not its own.
    """
    with database.reading() as connection:
        row = connection.execute(select(attempts).where(attempts.c.id == identity)).first()
    if row is None or row.state != RUNNING or not secrets.compare_digest(row.token_digest, digest_of(token)):
        raise Superseded
    return Attempt(row.id, row.job, row.device, row.number, row.worker)


def hear(database: Database, attempt: Attempt, payloads: Sequence[Mapping[str, Any]]) -> bool:
    """Notes that an attempt lives, and what it reports.

    Returns:
        Whether it is to stop.

    Raises:
        Superseded: It is no longer the device's.
    """
    with database.writing() as connection:
        _hold(connection, attempt)
        connection.execute(update(attempts).where(attempts.c.id == attempt.id).values(heard=time.time()))
        progress: dict[str, Any] = {}
        for payload in payloads:
            note(connection, attempt.job, payload, device=attempt.device, attempt=attempt.number)
            if payload["event"] == "stage-began":
                progress["stage"] = str(payload["stage"])
            elif payload["event"] == "progress":
                progress |= {"done": int(payload["done"]), "total": int(payload["total"])}
        if progress:
            connection.execute(_device(attempt.job, attempt.device).values(**progress))
        cancelled = connection.execute(select(jobs.c.cancel_requested).where(jobs.c.id == attempt.job)).scalar()
        return cancelled is not None


def note_artifact(database: Database, attempt: Attempt, *, manifest: str, size: int) -> None:
    """Notes what an attempt delivered.

    Raises:
        Superseded: It is no longer the device's.
    """
    with database.writing() as connection:
        _hold(connection, attempt)
        connection.execute(_device(attempt.job, attempt.device).values(manifest=manifest, size=size))


def end_attempt(database: Database, attempt: Attempt, outcome: Outcome, *, most_losses: int) -> DeviceState:
    """Settles what an attempt came to; the device is finished, or waits for its next attempt.

    Args:
        database: The tables.
        attempt: Which one.
        outcome: How it ended.
        most_losses: Attempts of a device that may be lost.

    Raises:
        Superseded: It is no longer the device's.
    """
    with database.writing() as connection:
        row = _hold(connection, attempt)
        cancelled = connection.execute(select(jobs.c.cancel_requested).where(jobs.c.id == attempt.job)).scalar()
        state, changes = _settled(row, outcome, is_cancelled=cancelled is not None, most_losses=most_losses)
        connection.execute(
            update(attempts).where(attempts.c.id == attempt.id).values(state=ENDED, finished=time.time())
        )
        _set_state(connection, attempt.job, attempt.device, state, attempt.number, **changes)
        return state


def give_up(database: Database, attempt: Attempt, why: str, *, most_losses: int) -> None:
    """Settles an attempt that nobody hears of any more: the device waits for its next one, or is lost."""
    with database.writing() as connection:
        is_running = connection.execute(
            update(attempts)
            .where(attempts.c.id == attempt.id, attempts.c.state == RUNNING)
            .values(state=GIVEN_UP, finished=time.time())
        ).rowcount
        if not is_running:
            return
        row = connection.execute(_read_device(attempt.job, attempt.device)).one()
        cancelled = connection.execute(select(jobs.c.cancel_requested).where(jobs.c.id == attempt.job)).scalar()
        state, changes = _lost(row, why, is_cancelled=cancelled is not None, most_losses=most_losses)
        _set_state(connection, attempt.job, attempt.device, state, attempt.number, why=why, **changes)


def cancel_job(database: Database, job: str) -> None:
    """Asks that a job stops: what waits ends now, what runs is told when it is next heard of."""
    with database.writing() as connection:
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job, jobs.c.cancel_requested.is_(None), jobs.c.finished.is_(None))
            .values(cancel_requested=time.time())
        )
        for row in connection.execute(select(devices).where(devices.c.job == job, devices.c.state.in_(WAITING))).all():
            _set_state(connection, job, row.name, DeviceState.CANCELLED, row.attempt)


def fail_waiting(database: Database, device: Waiting, error: Mapping[str, Any]) -> None:
    """Ends a device that waits, by an error."""
    with database.writing() as connection:
        values = {"error": dict(error), "exit_code": error["exit_code"]}
        _set_state(connection, device.job, device.name, DeviceState.FAILED, device.attempt, **values)


def set_waiting_for(database: Database, device: Waiting, missing: Sequence[str]) -> None:
    """Notes which labels no worker has that a device waits for; none puts it back into the queue."""
    state = DeviceState.WAITING_FOR_WORKER if missing else DeviceState.QUEUED
    with database.writing() as connection:
        connection.execute(
            _device(device.job, device.name)
            .where(devices.c.state.in_(WAITING))
            .values(state=state, waiting_for=list(missing))
        )
        _note_state(connection, device.job, device.name, device.attempt, state, waiting_for=list(missing))


def set_pinned(database: Database, job: str, pinned: bool) -> None:
    """Says whether a job's artifacts stay for good."""
    with database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(pinned=pinned))


def _hold(connection: Connection, attempt: Attempt) -> Row[Any]:
    """The device of an attempt.

    Raises:
        Superseded: The attempt is no longer the device's.
    """
    row = connection.execute(_read_device(attempt.job, attempt.device)).one()
    is_running = connection.execute(select(attempts.c.state).where(attempts.c.id == attempt.id)).scalar() == RUNNING
    if row.attempt != attempt.number or row.state != DeviceState.RUNNING or not is_running:
        raise Superseded
    return row


def _settled(
    row: Row[Any], outcome: Outcome, *, is_cancelled: bool, most_losses: int
) -> tuple[DeviceState, dict[str, Any]]:
    code, error = outcome.exit_code, outcome.error
    facts: dict[str, Any] = {"seconds": outcome.seconds, "figures": outcome.figures, "error": error, "exit_code": code}
    if code == 0:
        return DeviceState.SUCCEEDED, facts
    if is_cancelled:
        return DeviceState.CANCELLED, {**facts, "error": None, "exit_code": Interrupted.exit_code}
    if code is None:  # its worker was stopped in order, which is no fault of the build
        return DeviceState.QUEUED, {}
    if code < 0 or code == Interrupted.exit_code:
        how = f"signal {-code} ended its build" if code < 0 else "its build was interrupted"
        return _lost(row, how, is_cancelled=False, most_losses=most_losses)
    name = str((error or {}).get("error"))
    if name in RETRIED and row.failures + 1 < MOST_FAILURES:
        return DeviceState.QUEUED, {"failures": row.failures + 1}
    return (DeviceState.REFUSED if name == "GateFailed" else DeviceState.FAILED), facts


def _lost(row: Row[Any], why: str, *, is_cancelled: bool, most_losses: int) -> tuple[DeviceState, dict[str, Any]]:
    if is_cancelled:
        return DeviceState.CANCELLED, {"exit_code": Interrupted.exit_code}
    if row.losses + 1 < most_losses:
        return DeviceState.QUEUED, {"losses": row.losses + 1}
    error = {
        "error": "ToolchainFailed",
        "exit_code": 4,
        "what": f"{row.losses + 1} attempts were lost, the last one since {why}",
        "where": row.name,
        "remedy": "Build the device alone with `fleetc build`; a worker may have too little memory for it.",
    }
    return DeviceState.LOST, {"losses": row.losses + 1, "error": error, "exit_code": 4}


def _set_state(
    connection: Connection, job: str, name: str, state: DeviceState, attempt: int, *, why: str = "", **changes: Any
) -> None:
    """Moves a device to a state; the last one to be finished finishes the job."""
    now = time.time()
    finished = now if state in FINAL else None
    connection.execute(_device(job, name).values(state=state, waiting_for=[], finished=finished, **changes))
    _note_state(connection, job, name, attempt, state, why=why, error=changes.get("error"))
    states = [DeviceState(row.state) for row in connection.execute(_read_devices(job))]
    if all(one in FINAL for one in states):
        done = connection.execute(update(jobs).where(jobs.c.id == job, jobs.c.finished.is_(None)).values(finished=now))
        if done.rowcount:
            note(connection, job, {"event": "job-finished", "state": job_state(states)})


def _note_state(connection: Connection, job: str, name: str, attempt: int, state: DeviceState, **more: Any) -> None:
    said = {key: value for key, value in more.items() if value}
    note(connection, job, {"event": "device-state", "state": state, **said}, device=name, attempt=attempt)


def _device(job: str, name: str) -> Any:
    return update(devices).where(devices.c.job == job, devices.c.name == name)


def _read_device(job: str, name: str) -> Any:
    return select(devices).where(devices.c.job == job, devices.c.name == name)


def _read_devices(job: str) -> Any:
    return select(devices).where(devices.c.job == job).order_by(devices.c.place)
