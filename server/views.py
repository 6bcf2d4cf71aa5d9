"""What the tables say of jobs: the views that clients get, the log, earlier builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from compiler.errors import FleetFailed, Interrupted
from server.jobs import REQUESTS, queue
from server.schema import DeviceState, DeviceView, JobRequest, JobState, JobView, job_state
from server.tables import Database, devices, events, jobs


def read_request(database: Database, job: str) -> JobRequest:
    """What was asked for."""
    with database.reading() as connection:
        return REQUESTS.validate_json(
            connection.execute(select(jobs.c.request).where(jobs.c.id == job)).scalar_one(), strict=False
        )


def job_exists(database: Database, job: str, project: str | None) -> bool:
    """Whether there is such a job in a project; None stands for any."""
    with database.reading() as connection:
        row = connection.execute(select(jobs.c.project).where(jobs.c.id == job)).first()
    return row is not None and project in (None, row.project)


def view_job(database: Database, job: str, *, slots: int = 1) -> JobView:
    """A job as clients see it.

    Args:
        database: The tables.
        job: Its id; it must be there.
        slots: How many builds run at a time, for the estimate.
    """
    with database.reading() as connection:
        return _view(connection, job, _places(connection), max(1, slots))


def list_jobs(
    database: Database, project: str | None, *, limit: int = 50, before: float | None = None, slots: int = 1
) -> tuple[JobView, ...]:
    """The latest jobs of a project, the newest first; None stands for all projects."""
    with database.reading() as connection:
        query = select(jobs.c.id).order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
        if project is not None:
            query = query.where(jobs.c.project == project)
        if before is not None:
            query = query.where(jobs.c.created < before)
        places = _places(connection)
        return tuple(_view(connection, row.id, places, max(1, slots)) for row in connection.execute(query).all())


def _places(connection: Connection) -> dict[tuple[str, str], int]:
    return {(one.job, one.name): number for number, one in enumerate(queue(connection), start=1)}


def _view(connection: Connection, job: str, places: Mapping[tuple[str, str], int], slots: int) -> JobView:
    row = connection.execute(select(jobs).where(jobs.c.id == job)).one()
    rows = connection.execute(select(devices).where(devices.c.job == job).order_by(devices.c.place)).all()
    waits = [place for (owner, _), place in places.items() if owner == job]
    usual = _usual_seconds(connection, row.project) if waits else None
    views = tuple(_device_view(one, places.get((job, one.name)), usual, slots) for one in rows)
    state = job_state([view.state for view in views])
    return JobView(
        id=row.id,
        project=row.project,
        fleet=row.fleet,
        state=state,
        exit_code=job_exit_code(state, views),
        created=row.created,
        finished=row.finished,
        priority=row.priority,
        pinned=row.pinned,
        cancel_requested=row.cancel_requested is not None,
        devices=views,
    )


def _usual_seconds(connection: Connection, project: str) -> float | None:
    """Mean wall time of the project's builds."""
    query = (
        select(func.avg(devices.c.seconds))
        .join(jobs, jobs.c.id == devices.c.job)
        .where(jobs.c.project == project, devices.c.state == DeviceState.SUCCEEDED)
    )
    return connection.execute(query).scalar()


def _device_view(row: Row[Any], place: int | None, usual: float | None, slots: int) -> DeviceView:
    waits = row.state == DeviceState.QUEUED
    return DeviceView(
        name=row.name,
        state=DeviceState(row.state),
        labels=tuple(row.labels),
        waiting_for=tuple(row.waiting_for),
        position=place,
        estimate_s=round(usual * (place - 1) / slots, 1) if waits and place and usual is not None else None,
        attempt=row.attempt,
        worker=row.worker,
        stage=row.stage if row.state == DeviceState.RUNNING else "",
        done=row.done,
        total=row.total,
        seconds=row.seconds,
        exit_code=row.exit_code,
        error=row.error,
        figures=row.figures,
        manifest=row.manifest if row.state == DeviceState.SUCCEEDED else "",
        size=row.size if row.state == DeviceState.SUCCEEDED else 0,
        original=row.original,
    )


def job_exit_code(state: JobState, views: Sequence[DeviceView]) -> int | None:
    """The exit code that `fleetc build` would have ended with; None before the end."""
    if state in (JobState.QUEUED, JobState.RUNNING):
        return None
    if state is JobState.CANCELLED:
        return Interrupted.exit_code
    if state is JobState.PARTIAL:
        return FleetFailed.exit_code
    return next((view.exit_code for view in views if view.exit_code), 0)


def read_events(database: Database, job: str, after: int, *, limit: int = 500) -> list[tuple[int, str, str]]:
    """Events of a job after an id, the oldest first: id, kind and JSON text."""
    with database.reading() as connection:
        rows = connection.execute(
            select(events.c.id, events.c.kind, events.c.text)
            .where(events.c.job == job, events.c.id > after)
            .order_by(events.c.id)
            .limit(limit)
        ).all()
    return [(row.id, row.kind, row.text) for row in rows]


def has_event(database: Database, job: str, identity: int) -> bool:
    """Whether an event is of a job."""
    with database.reading() as connection:
        return connection.execute(select(events.c.job).where(events.c.id == identity)).scalar() == job


def latest_good(database: Database, project: str, fleet: str, device: str) -> str | None:
    """The job of the last build of a device class that passed; None where there is none."""
    query = (
        select(jobs.c.id)
        .join(devices, devices.c.job == jobs.c.id)
        .where(jobs.c.project == project, jobs.c.fleet == fleet, devices.c.name == device, jobs.c.emptied.is_(None))
        .where(devices.c.state == DeviceState.SUCCEEDED)
        .order_by(devices.c.finished.desc())
        .limit(1)
    )
    with database.reading() as connection:
        return connection.execute(query).scalar()


def last_events(database: Database, job: str, *, limit: int) -> tuple[list[str], bool]:
    """The last events of a job as JSON texts, the oldest first, and whether there were more before."""
    with database.reading() as connection:
        query = select(events.c.text).where(events.c.job == job).order_by(events.c.id.desc()).limit(limit + 1)
        texts = [row.text for row in connection.execute(query)]
    return texts[:limit][::-1], len(texts) > limit


def previous_job(database: Database, view: JobView) -> str | None:
    """The job of the same fleet file before this one that delivered something; None where there is none."""
    query = (
        select(jobs.c.id)
        .join(devices, devices.c.job == jobs.c.id)
        .where(jobs.c.project == view.project, jobs.c.fleet == view.fleet, jobs.c.created < view.created)
        .where(devices.c.state == DeviceState.SUCCEEDED, jobs.c.emptied.is_(None))
        .order_by(jobs.c.created.desc())
        .limit(1)
    )
    with database.reading() as connection:
        return connection.execute(query).scalar()
