"""What the routes share: the site of this process, who asks, and which job is meant."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeAlias

from fastapi import Depends, Header, Request
from fastapi import Path as PathParameter

from compiler.store.keys import PrivateKey
from server.attempt_rows import Attempt, Superseded, find_attempt
from server.bell import Bell
from server.blobs import Blobs
from server.dispatch import Dispatcher
from server.engine import BuildEngine
from server.keys import Principal, find_key
from server.metrics import Metrics
from server.problems import Problem
from server.rate import RateLimit
from server.schema import Scope
from server.tables import Database
from server.views import job_exists

COOKIE = "fleetc_key"
_JOB_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Site:
    """One running server.

    Args:
        folder: The data folder.
        database: The tables.
        blobs: Uploaded files.
        engine: Who carries attempts to workers.
        dispatcher: Who hands them out.
        bell: Rung when something changes.
        metrics: Figures for Prometheus.
        version: Of fleetc.
        hosts: Names by which it may be called.
        url: Its address, by which signatures name it as the builder.
        key: Signs artifacts, and entries of the shared cache.
        rebuilt_key: Signs what second builders state.
        rate: How many requests a key may make.
        confirming: Held while a delivered artifact gets a second builder's statement.
    """

    folder: Path
    database: Database
    blobs: Blobs
    engine: BuildEngine
    dispatcher: Dispatcher
    bell: Bell
    metrics: Metrics
    version: str
    hosts: frozenset[str]
    url: str
    key: PrivateKey
    rebuilt_key: PrivateKey
    rate: RateLimit
    confirming: threading.Lock = field(default_factory=threading.Lock)

    @property
    def scratch(self) -> Path:
        """Folder for files that are looked at."""
        return self.folder / "scratch"

    def cache(self, project: str) -> Path:
        """The shared cache of a project."""
        return self.folder / "cache" / project

    def artifact(self, project: str, job: str, device: str) -> Path:
        """Where a device's artifact is."""
        return self.artifacts(project, job) / f"{device}.tar"

    def artifacts(self, project: str, job: str) -> Path:
        """Where a job's artifacts are."""
        return self.folder / "artifacts" / project / job

    def slots(self) -> int:
        """How many builds run at a time on all workers."""
        return sum(worker.slots for worker in self.engine.capacity())


def site_of(request: Request) -> Site:
    """The site that a request reached."""
    site: Site = request.app.state.site
    return site


SiteDep: TypeAlias = Annotated[Site, Depends(site_of)]


def principal_of(request: Request, site: SiteDep) -> Principal:
    """Who asks: the key of the `Authorization` header, or of the page's cookie.

    Raises:
        Problem: There is no key, or none that is valid, or it asks too often.
    """
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip() if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")
    who = find_key(site.database, text) if text else None
    if who is None:
        what = "the key is not valid" if text else "a key is needed"
        raise Problem(401, what, headers={"WWW-Authenticate": "Bearer"})
    wait_s = site.rate.take(who.key)
    if wait_s:
        raise Problem(429, "the key makes too many requests", headers={"Retry-After": str(math.ceil(wait_s))})
    return who


def requires(scope: Scope) -> Callable[[Principal], Principal]:
    """A dependency: who asks must have a scope."""

    def check(who: Annotated[Principal, Depends(principal_of)]) -> Principal:
        if not who.may(scope):
            raise Problem(403, f"the key has no scope `{scope}`")
        return who

    return check


Reader: TypeAlias = Annotated[Principal, Depends(requires(Scope.READ))]
Submitter: TypeAlias = Annotated[Principal, Depends(requires(Scope.SUBMIT))]
Admin: TypeAlias = Annotated[Principal, Depends(requires(Scope.ADMIN))]


def scope_project(who: Principal) -> str | None:
    """The project whose jobs a key may see; None for all."""
    return None if who.may(Scope.ADMIN) else who.project


JobId: TypeAlias = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{12}$", alias="job")]


def require_job(site: Site, who: Principal, job: str) -> str:
    """The id of a job that a key may see.

    Raises:
        Problem: There is none; a job of another project is none.
    """
    if not _JOB_ID.fullmatch(job) or not job_exists(site.database, job, scope_project(who)):
        raise Problem(404, f"there is no job {job[:20]!r}")
    return job


def readable_job(site: SiteDep, who: Reader, job: JobId) -> str:
    """A job that the key may read."""
    return require_job(site, who, job)


def own_job(site: SiteDep, who: Submitter, job: JobId) -> str:
    """A job that the key may change."""
    return require_job(site, who, job)


ReadableJob: TypeAlias = Annotated[str, Depends(readable_job)]
OwnJob: TypeAlias = Annotated[str, Depends(own_job)]


def attempt_of(
    site: SiteDep,
    attempt: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}$")],
    authorization: Annotated[str, Header()] = "",
) -> Attempt:
    """The attempt that reports.

    Raises:
        Problem: It is none that runs, or the token is not its own.
    """
    try:
        return find_attempt(site.database, attempt, authorization.partition(" ")[2].strip())
    except Superseded as error:
        raise superseded() from error


def superseded() -> Problem:
    """The answer to an attempt that is no longer wanted."""
    return Problem(409, "the attempt is over, or another one has taken its place")


AttemptDep: TypeAlias = Annotated[Attempt, Depends(attempt_of)]
