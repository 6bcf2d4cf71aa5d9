"""What becomes of old things: artifacts and uploaded files go after a time, records stay."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update

from compiler.errors import StorageError
from compiler.store.remote.folder import FolderBlobs
from server.api.site import Site
from server.attempt_rows import running
from server.jobs import queue
from server.tables import jobs
from server.views import read_request

EVERY_S = 3600.0
DAY_S = 86_400.0
GIB = 1 << 30

log = logging.getLogger("fleetc.server")


@dataclass(frozen=True)
class Retention:
    """What is kept.

    Args:
        artifact_days: How long artifacts of jobs that are not pinned stay.
        blob_days: How long uploaded files stay, since they were last used.
        cache_gib: Size of a project's shared cache; what was not used for longest goes first.
    """

    artifact_days: float = 30.0
    blob_days: float = 30.0
    cache_gib: float = 50.0


KEEP = Retention()


DRAFTS = ("scratch/*", "cache/*/tmp/*", "reports/.draft-*", "artifacts/*/*/.*", ".signing-*")
"""Files and folders that a request makes and removes again. Parts of uploads are none: clients go on with them."""


def clear_drafts(data: Path) -> int:
    """Removes what requests of a killed server left. Returns how many files and folders that were."""
    left = [path for pattern in DRAFTS for path in data.glob(pattern)]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return len(left)


def start_housekeeping(site: Site, retention: Retention) -> None:
    """Looks once an hour, in a thread that ends with the process."""

    def run() -> None:
        while not site.bell.is_closing:
            try:
                clear_old(site, retention)
            except StorageError as error:
                log.error("old artifacts stay: %s", error)
            time.sleep(EVERY_S)

    threading.Thread(target=run, name="fleetc-housekeeping", daemon=True).start()


def clear_old(site: Site, retention: Retention) -> None:
    """Removes what is too old; jobs that are not finished, and those that are pinned, keep everything."""
    _touch_files_in_use(site)
    moment = time.time() - retention.artifact_days * DAY_S
    query = select(jobs.c.id, jobs.c.project).where(
        jobs.c.finished < moment, jobs.c.pinned.is_(False), jobs.c.emptied.is_(None)
    )
    with site.database.reading() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        for folder in (site.artifacts(row.project, row.id), site.folder / "reports" / row.id):
            shutil.rmtree(folder, ignore_errors=True)
        with site.database.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(emptied=time.time()))
        log.info("job %s: its artifacts are removed, its record stays", row.id)
    site.blobs.remove_old(age_s=retention.blob_days * DAY_S)
    for folder in (site.folder / "cache").glob("*"):
        FolderBlobs(folder).remove_oldest(max_bytes=int(retention.cache_gib * GIB))


def _touch_files_in_use(site: Site) -> None:
    with site.database.reading() as connection:
        busy = {one.job for one in queue(connection)} | {row.job for row in running(connection)}
        projects = dict(connection.execute(select(jobs.c.id, jobs.c.project).where(jobs.c.id.in_(busy))).all())
    for job in busy:
        for digest in read_request(site.database, job).files.values():
            site.blobs.touch(projects[job], digest)
