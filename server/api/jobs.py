"""Jobs: submit, plan, look at, follow, cancel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from server.api.plan import originals_of, plan_job
from server.api.site import OwnJob, ReadableJob, Reader, Site, SiteDep, Submitter, scope_project
from server.attempt_rows import silent_workers
from server.jobs import OtherBody, add_job, cancel_job, find_by_idempotency_key, request_digest, set_pinned
from server.keys import Principal
from server.problems import Problem
from server.schema import FINAL, JobRequest, JobView
from server.views import has_event, list_jobs, read_events, view_job

router = APIRouter(prefix="/v1", tags=["jobs"])

PING_S = 15.0
"""How often an event stream says something, so that nobody between takes the connection for dead."""

LONGEST_CANCEL_S = 30.0
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


@dataclass(frozen=True)
class Cancelled:
    """What a cancel came to: the job, and workers that have not answered yet."""

    job: JobView
    silent: tuple[str, ...]


@router.post("/jobs", status_code=201)
def submit(
    body: JobRequest, response: Response, site: SiteDep, who: Submitter, idempotency_key: IdempotencyKey = None
) -> JobView:
    """Submits a job; with an `Idempotency-Key`, the same request again gives the same job."""
    if idempotency_key is not None:
        try:
            earlier = find_by_idempotency_key(site.database, who.project, idempotency_key, request_digest(body))
        except OtherBody as error:
            raise _other_body() from error
        if earlier is not None:
            response.status_code = 200
            return view_job(site.database, earlier, slots=site.slots())
    _refuse_short_key(who, body)
    planned = plan_job(site, who, body)
    originals = originals_of(site, who, body, planned) if body.reproduce else {}
    try:
        job, is_new = add_job(
            site.database,
            body,
            who,
            labels=planned.labels,
            idempotency_key=idempotency_key,
            originals={name: (original.job, original.worker) for name, original in originals.items()},
        )
    except OtherBody as error:
        raise _other_body() from error
    site.bell.ring()
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{job}"
    return view_job(site.database, job, slots=site.slots())


@router.get("/jobs")
def index(
    site: SiteDep,
    who: Reader,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
) -> tuple[JobView, ...]:
    """The latest jobs, the newest first; `before` is the `created` of the last one of the previous page."""
    return list_jobs(site.database, scope_project(who), limit=limit, before=before, slots=site.slots())


@router.get("/jobs/{job}")
def show(job: ReadableJob, site: SiteDep) -> JobView:
    """One job and the states of its devices."""
    return view_job(site.database, job, slots=site.slots())


@router.put("/jobs/{job}/pin")
def pin(job: OwnJob, site: SiteDep) -> JobView:
    """Keeps a job's artifacts for good."""
    set_pinned(site.database, job, True)
    return view_job(site.database, job)


@router.delete("/jobs/{job}/pin")
def unpin(job: OwnJob, site: SiteDep) -> JobView:
    """Lets a job's artifacts go when they are old."""
    set_pinned(site.database, job, False)
    return view_job(site.database, job)


@router.post("/jobs/{job}/cancel")
async def cancel(
    job: OwnJob, site: SiteDep, wait_s: Annotated[float, Query(ge=0, le=LONGEST_CANCEL_S)] = 15.0
) -> Cancelled:
    """Cancels a job; answers when every process of it is gone, or names the workers that have not answered."""
    return await cancel_and_wait(site, job, wait_s=wait_s)


async def cancel_and_wait(site: Site, job: str, *, wait_s: float) -> Cancelled:
    """Cancels a job and waits until nothing of it runs, or until a time is over."""
    deadline = time.monotonic() + wait_s
    await run_in_threadpool(cancel_job, site.database, job)
    site.bell.ring()
    with site.bell.listening() as changed:
        while True:
            changed.clear()
            view = await run_in_threadpool(view_job, site.database, job)
            running = {device.worker for device in view.devices if device.state not in FINAL}
            if not running or time.monotonic() >= deadline or site.bell.is_closing:
                silent = running | await run_in_threadpool(silent_workers, site.database, job)
                return Cancelled(view, tuple(sorted(silent)))
            await wait_for(changed, min(1.0, max(0.0, deadline - time.monotonic())))


@router.get("/jobs/{job}/events", response_class=EventSourceResponse)
async def events(
    job: ReadableJob, site: SiteDep, last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[ServerSentEvent]:
    """A job's events as they happen, from its first or, with `Last-Event-ID`, from the next one on; ends with the job.

    Where that id is of no event of the job, the first event is `resync`, and the log follows from its beginning.
    """
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 16 else 0
    if last_event_id and not await run_in_threadpool(has_event, site.database, job, after):
        after = 0
        yield ServerSentEvent(event="resync", raw_data="{}")
    with site.bell.listening() as changed:
        while not site.bell.is_closing:
            changed.clear()
            rows = await run_in_threadpool(read_events, site.database, job, after)
            for identity, kind, text in rows:
                after = identity
                yield ServerSentEvent(id=str(identity), event=kind, raw_data=text)
                if kind == "job-finished":
                    return
            if not rows and not await wait_for(changed, PING_S):
                yield ServerSentEvent(comment="still here")


@router.get("/jobs/{job}/log", response_class=PlainTextResponse)
def log(job: ReadableJob, site: SiteDep) -> PlainTextResponse:
    """A job's events up to now, one JSON document per line."""
    lines, after = list[str](), 0
    while rows := read_events(site.database, job, after):
        lines += [text for _, _, text in rows]
        after = rows[-1][0]
    return PlainTextResponse("\n".join([*lines, ""]), media_type="application/x-ndjson")


async def wait_for(changed: asyncio.Event, limit_s: float) -> bool:
    """Waits for a ring of the bell. Returns whether there was one."""
    try:
        await asyncio.wait_for(changed.wait(), limit_s)
    except TimeoutError:
        return False
    return True


def _refuse_short_key(who: Principal, body: JobRequest) -> None:
    """A job must not outlive the key it is asked for with."""
    limits = (body.deadline_queued_s or 0) + (body.deadline_running_s or 0)
    if who.expires is not None and time.time() + limits > who.expires:
        raise Problem(403, "the key ends before the job's deadlines", remedy="Use a key that is valid for longer.")


def _other_body() -> Problem:
    return Problem(422, "the idempotency key was used for another request", remedy="Use another one for each request.")
