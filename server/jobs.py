"""Jobs and their devices in the tables: what is asked for, the queue, and the states of devices."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from server.keys import Principal
from server.schema import FINAL, DeviceState, JobRequest, job_state
from server.tables import Database, devices, events, jobs

REQUESTS: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
WAITING = (DeviceState.QUEUED, DeviceState.WAITING_FOR_WORKER)


class OtherBody(Exception):
    """An idempotency key is used again for another request."""


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
    not_on: str
    deadline_queued_s: float | None


def add_job(
    database: Database,
    request: JobRequest,
    who: Principal,
    *,
    labels: Mapping[str, Sequence[str]],
    idempotency_key: str | None = None,
    originals: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[str, bool]:
    """Puts a job into the queue.

    Args:
        database: The tables.
        request: What is asked for; it was planned, so it can be obeyed.
        who: Whose job it is.
        labels: Device class → the labels that its worker needs, in the fleet's order.
        idempotency_key: The client's; the same key and request give the same job.
        originals: Device class → the job whose build it repeats, and the worker that must not do it.

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
                original, not_on = (originals or {}).get(name, ("", ""))
                values = {"job": identity, "name": name, "place": place, "labels": list(needed), "waiting_for": []}
                values |= {"original": original, "not_on": not_on}
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
            devices.c.not_on,
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
            not_on=row.not_on,
            deadline_queued_s=row.deadline_queued_s,
        )
        for row in rows
    ]


def cancel_job(database: Database, job: str) -> None:
    """Asks that a job stops: what waits ends now, what runs is told when it is next heard of."""
    with database.writing() as connection:
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job, jobs.c.cancel_requested.is_(None), jobs.c.finished.is_(None))
            .values(cancel_requested=time.time())
        )
        for row in connection.execute(select(devices).where(devices.c.job == job, devices.c.state.in_(WAITING))).all():
            set_state(connection, job, row.name, DeviceState.CANCELLED, row.attempt)


def fail_waiting(database: Database, device: Waiting, error: Mapping[str, Any]) -> None:
    """Ends a device that waits, by an error."""
    with database.writing() as connection:
        values = {"error": dict(error), "exit_code": error["exit_code"]}
        set_state(connection, device.job, device.name, DeviceState.FAILED, device.attempt, **values)


def set_waiting_for(database: Database, device: Waiting, missing: Sequence[str]) -> None:
    """Notes which labels no worker has that a device waits for; none puts it back into the queue."""
    state = DeviceState.WAITING_FOR_WORKER if missing else DeviceState.QUEUED
    with database.writing() as connection:
        connection.execute(
            update_device(device.job, device.name)
            .where(devices.c.state.in_(WAITING))
            .values(state=state, waiting_for=list(missing))
        )
        note_state(connection, device.job, device.name, device.attempt, state, waiting_for=list(missing))


def set_pinned(database: Database, job: str, pinned: bool) -> None:
    """Says whether a job's artifacts stay for good."""
    with database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(pinned=pinned))


def set_state(
    connection: Connection, job: str, name: str, state: DeviceState, attempt: int, *, why: str = "", **changes: Any
) -> None:
    """Moves a device to a state; the last one to be finished finishes the job."""
    now = time.time()
    finished = now if state in FINAL else None
    connection.execute(update_device(job, name).values(state=state, waiting_for=[], finished=finished, **changes))
    note_state(connection, job, name, attempt, state, why=why, error=changes.get("error"))
    states = [DeviceState(row.state) for row in connection.execute(_read_devices(job))]
    if all(one in FINAL for one in states):
        done = connection.execute(update(jobs).where(jobs.c.id == job, jobs.c.finished.is_(None)).values(finished=now))
        if done.rowcount:
            note(connection, job, {"event": "job-finished", "state": job_state(states)})


def note_state(connection: Connection, job: str, name: str, attempt: int, state: DeviceState, **more: Any) -> None:
    """Appends to a job's log that a device is in a state."""
    said = {key: value for key, value in more.items() if value}
    note(connection, job, {"event": "device-state", "state": state, **said}, device=name, attempt=attempt)


def update_device(job: str, name: str) -> Any:
    """The statement that changes a device; its values are added."""
    return update(devices).where(devices.c.job == job, devices.c.name == name)


def read_device(job: str, name: str) -> Any:
    """The statement that reads a device."""
    return select(devices).where(devices.c.job == job, devices.c.name == name)


def _read_devices(job: str) -> Any:
    return select(devices).where(devices.c.job == job).order_by(devices.c.place)
