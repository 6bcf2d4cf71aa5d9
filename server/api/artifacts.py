"""What was built: artifacts as tar files or file by file, the report, and the latest good build of a device class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from server.api.site import ReadableJob, Reader, SiteDep
from server.artifacts import read_member
from server.problems import Problem
from server.schema import DeviceView, JobView
from server.views import latest_good, view_job

router = APIRouter(prefix="/v1", tags=["artifacts"])
Device = Annotated[str, PathParameter(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Tag = Annotated[str | None, Header(alias="If-None-Match")]


@dataclass(frozen=True)
class Latest:
    """The last build of a device class that passed."""

    job: str
    device: DeviceView


def device_of(view: JobView, name: str) -> DeviceView:
    """A device of a job.

    Raises:
        Problem: The job has none of that name.
    """
    found = next((device for device in view.devices if device.name == name), None)
    if found is None:
        raise Problem(404, f"the job has no device {name!r}")
    return found


@router.get("/jobs/{job}/artifacts/{device}.tar", response_class=FileResponse)
def tar(job: ReadableJob, device: Device, site: SiteDep, tag: Tag = None) -> Response:
    """A device's artifact; the ETag is the SHA-256 of its manifest, and ranges may be asked for."""
    view = view_job(site.database, job)
    found = device_of(view, device)
    path = site.artifact(view.project, job, device)
    if not path.is_file():
        raise Problem(404, f"there is no artifact of {device!r}", remedy=f"It is {found.state}.")
    etag = f'"{found.manifest or "none"}"'
    if tag == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return FileResponse(path, media_type="application/x-tar", filename=f"{device}.tar", headers={"ETag": etag})


@router.get("/jobs/{job}/artifacts/{device}/{path:path}")
def member(job: ReadableJob, device: Device, path: str, site: SiteDep) -> Response:
    """One file of an artifact, such as `manifest.json`."""
    view = view_job(site.database, job)
    found = device_of(view, device)
    file = site.artifact(view.project, job, device)
    content = read_member(file, f"{device}/{path}") if file.is_file() else None
    if content is None:
        raise Problem(404, f"the artifact of {device!r} has no such file")
    kind = "application/json" if path.endswith(".json") else "application/octet-stream"
    headers = {"ETag": f'"{found.manifest}/{len(content)}"', "Content-Disposition": "attachment"}
    return Response(content, media_type=kind, headers=headers)


@router.get("/latest/{fleet}/{device}")
def latest(fleet: Annotated[str, PathParameter(max_length=100)], device: Device, site: SiteDep, who: Reader) -> Latest:
    """The last build of a device class that passed, by the fleet file's name."""
    job = latest_good(site.database, who.project, fleet, device)
    if job is None:
        raise Problem(404, f"no build of {device!r} has passed")
    return Latest(job, device_of(view_job(site.database, job), device))
