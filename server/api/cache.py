"""The shared cache of a project: Bazel's HTTP cache protocol, at two addresses that differ in who asks.

    /cache/…                          a key of the project: `read` to fetch, `worker` to offer
    /v1/attempts/ATTEMPT/cache/…      an attempt that runs, by its token

Whoever may write here decides what other builds of the project take for finished, as a worker does with what it
delivers: so both need the same scope.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from compiler.store import MEASURED_STAGES
from compiler.store.envelope import load
from compiler.store.remote.blobs import MAX_RECORD_BYTES, Kind, read_bytes
from compiler.store.remote.entry import from_envelope, record_of
from compiler.store.remote.folder import FolderBlobs
from compiler.store.remote.handler import MAX_FILE_BYTES, CacheApp
from server.api.artifacts import device_of
from server.api.site import Site, attempt_of, principal_of, requires
from server.problems import Problem
from server.schema import Scope
from server.views import view_job

READING = frozenset({"GET", "HEAD"})
ENTRY = re.compile(r"/ac/([0-9a-f]{64})$")


@dataclass(frozen=True)
class Asker:
    """Whose cache is meant, who makes the entries that are offered, and whether only observations are shared.

    A build from nothing makes everything itself but what was measured: the same figures must lead to the same decision.
    """

    project: str
    builder: str
    only_observed: bool = False


def mount_cache(app: FastAPI, site: Site) -> None:
    """Serves the caches of a site's projects."""
    # a file may be as large as a model; what is larger than its kind may be is refused by the cache itself
    served = RequestBodyLimitMiddleware(_Caches(site), max_body_size=MAX_FILE_BYTES + MAX_RECORD_BYTES)
    app.mount("/v1/attempts/{attempt}/cache", served)
    app.mount("/cache", served)


class _Caches:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        asker = await run_in_threadpool(_asker, self._site, Request(scope))
        blobs = FolderBlobs(self._site.cache(asker.project))
        if asker.only_observed:
            await run_in_threadpool(_refuse_made, blobs, Request(scope))
        await CacheApp(blobs, self._site.key, builder_of=lambda _: asker.builder)(scope, receive, send)


def _asker(site: Site, request: Request) -> Asker:
    """Who asks.

    Raises:
        Problem: Nobody who may.
    """
    identity = request.path_params.get("attempt")
    if identity is not None:
        attempt = attempt_of(site, identity, request.headers.get("authorization", ""))
        view = view_job(site.database, attempt.job)
        repeats = bool(device_of(view, attempt.device).original)
        return Asker(view.project, f"{site.url} job {attempt.job} worker {attempt.worker}", repeats)
    scope = Scope.READ if request.method in READING else Scope.WORKER
    who = requires(scope)(principal_of(request, site))
    return Asker(who.project, f"{site.url} key {who.key}")


def _refuse_made(blobs: FolderBlobs, request: Request) -> None:
    """Refuses what a build from nothing must make itself, and what it offers.

    Raises:
        Problem: The entry is not there for it, or it would write one.
    """
    if request.method not in READING:
        raise Problem(403, "a build from nothing offers nothing")
    place = ENTRY.search(request.url.path)
    if place is not None and stage_of(blobs, place[1]) not in MEASURED_STAGES:
        raise Problem(404, "a build from nothing makes this itself")


def stage_of(blobs: FolderBlobs, digest: str) -> str:
    """The stage of an entry; empty where there is none."""
    with suppress(ValueError):
        raw = read_bytes(blobs, Kind.AC, digest)
        record = read_bytes(blobs, Kind.CAS, record_of(raw).sha256) if raw else None
        return from_envelope(load(record)).stage.name if record else ""
    return ""
