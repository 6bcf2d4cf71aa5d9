"""What would be built and by whom: a job is planned before it is submitted, and where it is only asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter

from compiler.store.remote.blobs import Kind
from compiler.store.remote.folder import FolderBlobs
from server.api.site import Site, SiteDep, Submitter
from server.artifacts import MANIFEST, read_member
from server.dispatch import missing_labels
from server.inputs import Planned, plan_request
from server.keys import Principal
from server.problems import Problem
from server.reproduce import Original, find_originals
from server.schema import JobRequest, Scope
from server.views import list_jobs

router = APIRouter(prefix="/v1", tags=["jobs"])


@dataclass(frozen=True)
class PlannedDevice:
    """What a plan says of one device class.

    Args:
        name: The device class.
        labels: Labels that its worker needs.
        workers: Connected workers that have them.
        missing: Labels that none has; then it would wait.
        plan: Its plan, as in the manifest; None where none can be made.
        error: Why none can be made.
        original: The job that last delivered it of the same inputs; empty where none did.
        seconds: How long that one's build took; None where there is none.
        cached: Stage of that build → whether the shared cache has it.
    """

    name: str
    labels: tuple[str, ...]
    workers: tuple[str, ...]
    missing: tuple[str, ...]
    plan: Any = None
    error: dict[str, Any] | None = None
    original: str = ""
    seconds: float | None = None
    cached: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanView:
    """A plan for every device class, about how long a build from nothing takes, and how many devices are ahead."""

    devices: tuple[PlannedDevice, ...]
    seconds: float
    basis: str
    ahead: int


@router.post("/plan")
def plan(body: JobRequest, site: SiteDep, who: Submitter) -> PlanView:
    """Plans a job without building it: reasons, labels, which workers could do it, and what the shared cache has."""
    planned, workers = plan_job(site, who, body), site.engine.capacity()
    originals = find_originals(site.database, who.project, body)
    devices = tuple(
        PlannedDevice(
            name,
            labels,
            tuple(worker.name for worker in workers if set(labels) <= worker.labels),
            missing_labels(labels, workers),
            planned.plans.get(name),
            planned.failed[name].to_dict() if name in planned.failed else None,
            *_earlier(site, who.project, name, originals.get(name)),
        )
        for name, labels in planned.labels.items()
    )
    waiting = [job for job in list_jobs(site.database, None, limit=1000) if job.finished is None]
    ahead = sum(device.position is not None for job in waiting for device in job.devices)
    return PlanView(devices, planned.forecast["seconds"], planned.forecast["basis"], ahead)


def plan_job(site: Site, who: Principal, body: JobRequest) -> Planned:
    """Plans a job; what cannot be obeyed is refused with every problem."""
    site.scratch.mkdir(exist_ok=True)
    may = who.may(Scope.CODE)
    return plan_request(body, who.project, blobs=site.blobs, scratch=site.scratch, may_run_code=may)


def originals_of(site: Site, who: Principal, body: JobRequest, planned: Planned) -> Mapping[str, Original]:
    """What the devices of a job repeat.

    Raises:
        Problem: Nothing of the same inputs was delivered for some of them, or no two builds of them are the same.
    """
    originals = find_originals(site.database, who.project, body)
    absent = [name for name in planned.labels if name not in originals]
    if absent:
        what = f"no build of the same inputs was delivered for {', '.join(absent)}"
        raise Problem(409, what, remedy="Submit it without `reproduce` first.")
    if planned.recovering:
        what = f"{', '.join(planned.recovering)}: recovery trains for a time, and two runs do other numbers of steps"
        raise Problem(409, what, remedy="Build it without recovery.")
    return originals


def _earlier(
    site: Site, project: str, device: str, original: Original | None
) -> tuple[str, float | None, dict[str, bool]]:
    """The last build of a device of the same inputs, how long it took, and which of its stages the cache has."""
    if original is None:
        return "", None, {}
    tar = site.artifact(project, original.job, device)
    manifest = read_member(tar, f"{device}/{MANIFEST}") if tar.is_file() else None
    stages = json.loads(manifest)["stages"] if manifest else []
    blobs = FolderBlobs(site.cache(project))
    cached = {str(one["stage"]): blobs.holds(Kind.AC, str(one["sha256"])) for one in stages}
    return original.job, original.seconds, cached
