"""A second build of the same inputs, from nothing and on another worker: what it is compared with, and what follows.

Where every file is the same, the provenance of what was delivered gets a second statement, signed by a key of its own;
so `fleetc verify` can ask for both. Where a file differs it is named, and the second build is refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from compiler.artifact.signing import confirm_rebuild
from compiler.errors import GateFailed
from compiler.store.keys import PrivateKey
from server.artifacts import BUILD, Checked, check, pack
from server.jobs import REQUESTS
from server.schema import DeviceState, JobRequest
from server.signing import unpacked
from server.tables import Database, devices, jobs

MOST_LOOKED_AT = 200
"""Builds of a fleet, the latest ones, that are compared with a request."""


@dataclass(frozen=True)
class Original:
    """A build that is to be repeated: its job, the worker that made it, its wall time and its manifest's digest."""

    job: str
    worker: str
    seconds: float
    manifest: str


def find_originals(database: Database, project: str, request: JobRequest) -> Mapping[str, Original]:
    """The latest build of each device class that was delivered of the same fleet file, files and settings."""
    query = (
        select(jobs.c.id, jobs.c.request, devices.c.name, devices.c.worker, devices.c.seconds, devices.c.manifest)
        .join(devices, devices.c.job == jobs.c.id)
        .where(jobs.c.project == project, jobs.c.fleet == request.fleet.name, jobs.c.emptied.is_(None))
        .where(devices.c.state == DeviceState.SUCCEEDED, devices.c.manifest != "", devices.c.original == "")
        .order_by(jobs.c.created.desc())
        .limit(MOST_LOOKED_AT)
    )
    with database.reading() as connection:
        rows = connection.execute(query).all()[::-1]
    same = {row.id for row in rows if _inputs(REQUESTS.validate_json(row.request, strict=False)) == _inputs(request)}
    return {row.name: Original(row.id, row.worker, row.seconds or 0.0, row.manifest) for row in rows if row.id in same}


def _inputs(request: JobRequest) -> tuple[object, ...]:
    return request.fleet, request.files, request.settings


def confirm(original: Path, rebuilt: Path, device: str, key: PrivateKey, *, builder: str, scratch: Path) -> Checked:
    """Compares the tar file of a second build with the first; where they are the same, both become the first one with
    the second builder's statement.

    Args:
        original: What was delivered.
        rebuilt: The second build; one without an artifact, of a build that failed, stays as it is.
        device: The device class.
        key: Signs what second builders state.
        builder: URI of the second builder.
        scratch: Folder for the files while they are compared.

    Returns:
        What the second tar file holds.

    Raises:
        ArtifactError: One of them is no artifact, or has bytes that its manifest does not state.
        GateFailed: Files differ; all are named.
    """
    facts = check(rebuilt, device)
    if not facts.manifest:
        return facts
    with unpacked(original, device, scratch) as first, unpacked(rebuilt, device, scratch) as second:
        different = confirm_rebuild(first / device, second / device, key, builder=builder)
        if different:
            raise GateFailed(
                f"the second build has other bytes in: {', '.join(different)}",
                where=device,
                remedy="Fetch both jobs; `fleetc diff` tells which change explains which.",
            )
        pack(first, device, rebuilt)
        facts = Checked(check(rebuilt, device).manifest, (first / BUILD).read_text(encoding="utf-8"))
    draft = original.with_name(f".confirmed-{os.getpid()}-{rebuilt.name}")
    shutil.copyfile(rebuilt, draft)
    draft.replace(original)
    return facts
