"""Workers, the queue, keys, and whether the server is well."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as PathParameter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field, StringConstraints
from pydantic.dataclasses import dataclass as checked_dataclass

from server.api.site import Admin, Reader, Site, SiteDep, requires, scope_project
from server.attempt_rows import running
from server.certificates import sign_request
from server.jobs import queue
from server.keys import KeyView, Principal, create_key, list_keys, revoke_key
from server.problems import Problem
from server.schema import ProjectName, Scope, WorkerView

router = APIRouter(tags=["machines"])

LEAST_FREE_BYTES = 64 << 20
"""With less space on the disk the server is not ready: an upload or a build would fill it."""


@dataclass(frozen=True)
class Queued:
    """A device that waits: its place from 1, and the labels that no worker has."""

    position: int
    job: str
    device: str
    waiting_for: tuple[str, ...]
    since: float


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class NewKey:
    """A key to be made."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=10)]
    project: ProjectName = "default"
    valid_days: Annotated[float | None, Field(gt=0, le=36_500, allow_inf_nan=False)] = None


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class NewWorker:
    """A worker that wants to join: its name, and a request for a certificate to its key."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    csr: Annotated[str, StringConstraints(max_length=10_000)]


@dataclass(frozen=True)
class Joined:
    """Where the engine is, the worker's certificate, and that of the authority."""

    address: str
    certificate: str
    ca: str


class Signer(StrEnum):
    """The server's own keys."""

    SERVER = "server"
    REBUILT = "rebuilt"


@dataclass(frozen=True)
class Secret:
    """A new key's text, which is not shown again."""

    key: str


def workers_of(site: Site) -> tuple[WorkerView, ...]:
    """The workers that are connected."""
    with site.database.reading() as connection:
        busy = Counter(row.worker for row in running(connection))
    return tuple(
        WorkerView(one.name, tuple(sorted(one.labels)), one.slots, busy[one.name], one.version, one.seen)
        for one in site.engine.capacity()
    )


@router.get("/v1/workers")
def workers(site: SiteDep, who: Reader) -> tuple[WorkerView, ...]:
    """The workers that are connected, with their labels."""
    return workers_of(site)


@router.post("/v1/workers", status_code=201)
def join(body: NewWorker, site: SiteDep, who: Annotated[Principal, Depends(requires(Scope.WORKER))]) -> Joined:
    """Lets a worker join: signs its certificate, and says where the engine is."""
    if not site.engine.address.startswith("tls://"):
        raise Problem(409, "the server takes no workers", remedy="Start it with --join HOST:PORT.")
    folder = site.folder / "tls"
    certificate = sign_request(folder, body.csr)
    return Joined(site.engine.address, certificate.decode(), (folder / "ca.pem").read_text("ascii"))


@router.get("/v1/queue")
def waiting(site: SiteDep, who: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> tuple[Queued, ...]:
    """The devices that wait, the next first; those of other projects count, and are not named."""
    with site.database.reading() as connection:
        rows = queue(connection)
    project = scope_project(who)
    shown = [
        Queued(position, one.job, one.name, one.waiting_for, one.created)
        for position, one in enumerate(rows, start=1)
        if project in (None, one.project)
    ]
    return tuple(shown[:limit])


@router.get("/v1/keys")
def keys(site: SiteDep, who: Admin) -> tuple[KeyView, ...]:
    """All keys, without their secrets."""
    return list_keys(site.database)


@router.get("/v1/public-keys/{signer}", response_class=PlainTextResponse)
def public_key(site: SiteDep, signer: Signer) -> str:
    """A key, PEM, that verifies.

    `server` is that of artifacts and of entries of the shared cache; `rebuilt` that of what second builders state.
    """
    return (site.key if signer is Signer.SERVER else site.rebuilt_key).public.pem.decode()


@router.post("/v1/keys", status_code=201)
def new_key(body: NewKey, site: SiteDep, who: Admin) -> Secret:
    """Makes a key; its text is in the answer, and nowhere else."""
    valid_s = body.valid_days * 86_400 if body.valid_days else None
    return Secret(create_key(site.database, body.name, project=body.project, scopes=body.scopes, valid_s=valid_s))


@router.delete("/v1/keys/{key}", status_code=204)
def revoke(key: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{12}$")], site: SiteDep, who: Admin) -> Response:
    """Ends a key now."""
    if not revoke_key(site.database, key):
        raise Problem(404, "there is no such key")
    return Response(status_code=204)


@dataclass(frozen=True)
class Health:
    """That the process answers, and its clock."""

    status: str
    time: float


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(site: SiteDep, who: Reader) -> Response:
    """Figures for Prometheus, which sends the key as its bearer token."""
    return Response(site.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/healthz")
def healthz() -> Health:
    """Whether the process answers."""
    return Health("ok", time.time())


@router.get("/readyz")
def readyz(site: SiteDep) -> Health:
    """Whether jobs can be taken: the database answers, the disk has space, and the server is not being stopped."""
    if site.bell.is_closing:
        raise Problem(503, "the server is being stopped")
    with site.database.reading() as connection:
        queue(connection)
    if site.blobs.free_bytes() < LEAST_FREE_BYTES:
        raise Problem(503, "the disk of the data folder is full")
    return Health("ready", time.time())
