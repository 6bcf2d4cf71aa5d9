"""What was chosen for a device, written into its folder with the reasons and the evidence for it."""

from __future__ import annotations

from pathlib import Path

from compiler.artifact.manifest import write_artifact
from compiler.artifact.schema import Manifest
from compiler.driver.clock import Clock
from compiler.driver.reports import Source, manifest_facts, measured_facts
from compiler.driver.search.search import SearchResult
from compiler.errors import InternalError
from compiler.fleet import Fleet
from compiler.plan.jobs import Job
from compiler.store import StageName


def deliver(job: Job, fleet: Fleet, source: Source, result: SearchResult, *, clock: Clock, folder: Path) -> Manifest:
    """Writes the artifact of a device whose search chose one. Returns the facts that its manifest states."""
    made = result.made
    if made is None:
        raise InternalError("nothing was chosen, and so there is nothing to deliver", where=job.device.name)
    with clock.timed(StageName.DELIVER):
        facts = manifest_facts(job, fleet, source, made, result)
        measured = measured_facts(made, clock.seconds)
        write_artifact(made.built.artifact, made.border.path, facts=facts, measurements=measured, folder=folder)
    return facts
