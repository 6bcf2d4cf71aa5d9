"""The shared cache of a project: Bazel's HTTP cache protocol, at two addresses that differ in who asks.

    /cache/…                          a key of the project: `read` to fetch, `worker` to offer
    /v1/attempts/ATTEMPT/cache/…      an attempt that runs, by its token

Whoever may write here decides what other builds of the project take for finished, as a worker does with what it
delivers: so both need the same scope.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from compiler.store.remote.blobs import MAX_RECORD_BYTES
from compiler.store.remote.folder import FolderBlobs
from compiler.store.remote.handler import MAX_FILE_BYTES, CacheApp
from server.api.site import Site, attempt_of, principal_of, requires
from server.schema import Scope
from server.views import view_job

READING = frozenset({"GET", "HEAD"})


@dataclass(frozen=True)
class Asker:
    """Whose cache is meant, and who makes the entries that are offered."""

    project: str
    builder: str


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
        await CacheApp(blobs, self._site.key, builder_of=lambda _: asker.builder)(scope, receive, send)


def _asker(site: Site, request: Request) -> Asker:
    """Who asks.

    Raises:
        Problem: Nobody who may.
    """
    identity = request.path_params.get("attempt")
    if identity is not None:
        attempt = attempt_of(site, identity, request.headers.get("authorization", ""))
        project = view_job(site.database, attempt.job).project
        return Asker(project, f"{site.url} job {attempt.job} worker {attempt.worker}")
    scope = Scope.READ if request.method in READING else Scope.WORKER
    who = requires(scope)(principal_of(request, site))
    return Asker(who.project, f"{site.url} key {who.key}")
