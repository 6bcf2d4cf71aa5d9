"""Attempts in the tables: how they begin, what they report, and what their device comes to by their end.

An attempt is a number of a device. Whatever an attempt writes is refused once its number is no longer the device's, so
that a worker that was given up cannot change what a later attempt has done.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from compiler.errors import Interrupted
from server.jobs import WAITING, Waiting, note, note_state, read_device, set_state, update_device
from server.keys import digest_of
from server.schema import DeviceState, Outcome
from server.tables import Database, attempts, devices, jobs

GIVEN_UP, RUNNING, ENDED = "given-up", "running", "ended"
"""States of an attempt."""

RETRIED = frozenset({"ToolchainFailed", "StorageError"})
"""Failures that another attempt may not meet: a toolchain that crashed, a disk that was full."""

MOST_FAILURES = 2
"""Attempts that may end in one of those before the device has failed."""


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
        note_state(connection, attempt.job, attempt.device, number, DeviceState.RUNNING, worker=worker)
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
            connection.execute(update_device(attempt.job, attempt.device).values(**progress))
        cancelled = connection.execute(select(jobs.c.cancel_requested).where(jobs.c.id == attempt.job)).scalar()
        return cancelled is not None


def note_artifact(database: Database, attempt: Attempt, *, manifest: str, size: int) -> None:
    """Notes what an attempt delivered.

    Raises:
        Superseded: It is no longer the device's.
    """
    with database.writing() as connection:
        _hold(connection, attempt)
        connection.execute(update_device(attempt.job, attempt.device).values(manifest=manifest, size=size))


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
        set_state(connection, attempt.job, attempt.device, state, attempt.number, **changes)
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
        row = connection.execute(read_device(attempt.job, attempt.device)).one()
        cancelled = connection.execute(select(jobs.c.cancel_requested).where(jobs.c.id == attempt.job)).scalar()
        state, changes = _lost(row, why, is_cancelled=cancelled is not None, most_losses=most_losses)
        set_state(connection, attempt.job, attempt.device, state, attempt.number, why=why, **changes)


def silent_workers(database: Database, job: str) -> set[str]:
    """Workers of a cancelled job that were given up since: whether their builds have ended, nobody knows."""
    query = (
        select(attempts.c.worker)
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.job == job, attempts.c.state == GIVEN_UP, attempts.c.finished >= jobs.c.cancel_requested)
    )
    with database.reading() as connection:
        return set(connection.execute(query).scalars())


def _hold(connection: Connection, attempt: Attempt) -> Row[Any]:
    """The device of an attempt.

    Raises:
        Superseded: The attempt is no longer the device's.
    """
    row = connection.execute(read_device(attempt.job, attempt.device)).one()
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
