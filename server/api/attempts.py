"""What workers call: the order of an attempt, its files, news, the artifact, and how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from compiler.driver.events import event_of
from compiler.store.disk import storage_errors
from server.api.artifacts import device_of
from server.api.blobs import MAX_BLOB_BYTES
from server.api.site import AttemptDep, Site, SiteDep, superseded
from server.artifacts import MEASUREMENTS, Checked, read_member
from server.attempt_rows import Attempt, Superseded, end_attempt, hear, note_artifact
from server.problems import Problem
from server.reproduce import confirm
from server.schema import Answer, JobRequest, News, Order, Outcome
from server.signing import sign_tar
from server.views import read_request, view_job

router = APIRouter(prefix="/v1/attempts/{attempt}", tags=["attempts"])

MAX_TEXT = 16_000
"""Characters of one text in an event that are kept: a vendor's log may be endless."""


@router.get("")
def order(attempt: AttemptDep, site: SiteDep) -> Order:
    """What is to be built."""
    request = read_request(site.database, attempt.job)
    return Order(
        project=_project(site, attempt),
        device=attempt.device,
        fleet=request.fleet,
        files=request.files,
        settings=request.settings,
        deadline_s=request.deadline_running_s,
        trusted_key=site.key.public.pem.decode(),
        from_nothing=request.reproduce,
    )


@router.get("/blobs/{digest}", response_class=FileResponse)
def blob(
    attempt: AttemptDep, digest: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$")], site: SiteDep
) -> FileResponse:
    """A file of the attempt's job."""
    request: JobRequest = read_request(site.database, attempt.job)
    path = site.blobs.path(_project(site, attempt), digest) if digest in request.files.values() else None
    if path is None:
        raise Problem(410, "the file is not there any more", remedy="Submit the job again.")
    return FileResponse(path, media_type="application/octet-stream")


@router.post("/news")
def news(attempt: AttemptDep, body: News, site: SiteDep) -> Answer:
    """What has happened since the last call; also says that the attempt lives."""
    payloads = [_payload(text, attempt) for text in body.events]
    try:
        stop = hear(site.database, attempt, payloads)
    except Superseded as error:
        raise superseded() from error
    site.metrics.note_events(payloads)
    if payloads:
        site.bell.ring_listeners()
    return Answer(stop)


@router.put("/artifact", max_body_size=MAX_BLOB_BYTES)
async def artifact(attempt: AttemptDep, request: Request, site: SiteDep) -> Answer:
    """Takes what was built; every digest is recomputed, and the artifact is signed."""
    final = site.artifact(await run_in_threadpool(_project, site, attempt), attempt.job, attempt.device)
    draft = final.with_name(f".{attempt.id}.tar")
    with storage_errors(site.folder):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                async for piece in request.stream():
                    await run_in_threadpool(file.write, piece)
                file.flush()
                await run_in_threadpool(os.fsync, file.fileno())
            await run_in_threadpool(_accept, site, attempt, draft, final)
        except ClientDisconnect:  # the worker sends it again, or is gone
            return Answer(False)
        finally:
            draft.unlink(missing_ok=True)
    return Answer(False)


def _accept(site: Site, attempt: Attempt, draft: Path, final: Path) -> None:
    facts = _sign(site, attempt, draft)
    size = draft.stat().st_size
    try:
        note_artifact(site.database, attempt, manifest=facts.manifest, size=size)
    except Superseded as error:
        raise superseded() from error
    draft.replace(final)
    measured = read_member(final, f"{attempt.device}/{MEASUREMENTS}")
    site.metrics.note_stages(json.loads(measured) if measured else {})


def _sign(site: Site, attempt: Attempt, draft: Path) -> Checked:
    """Signs what was delivered or, where it repeats a build, has that one signed a second time."""
    view = view_job(site.database, attempt.job)
    original = device_of(view, attempt.device).original
    if not original:
        return sign_tar(draft, attempt.device, site.key, builder=site.url, scratch=site.scratch)
    delivered = site.artifact(view.project, original, attempt.device)
    with site.confirming:
        return confirm(
            delivered,
            draft,
            attempt.device,
            site.rebuilt_key,
            builder=f"{site.url}/workers/{attempt.worker}",
            scratch=site.scratch,
        )


@router.post("/outcome")
def outcome(attempt: AttemptDep, body: Outcome, site: SiteDep) -> Answer:
    """How the attempt ended."""
    try:
        end_attempt(site.database, attempt, body, most_losses=site.dispatcher.rules.most_losses)
    except Superseded as error:
        raise superseded() from error
    site.bell.ring()
    return Answer(True)


def _project(site: Site, attempt: Attempt) -> str:
    return view_job(site.database, attempt.job).project


def _payload(text: str, attempt: Attempt) -> dict[str, Any]:
    """One event of the compiler, whose texts are bounded.

    Raises:
        Problem: It is none.
    """
    try:
        event_of(text)
    except ValueError as error:
        raise Problem(422, "an event is none of the compiler's") from error
    payload: dict[str, Any] = json.loads(text)
    return {
        name: value[:MAX_TEXT] if isinstance(value, str) else value
        for name, value in payload.items()
        if name != "device"
    }
