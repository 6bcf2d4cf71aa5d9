"""What was chosen for a device, written into its folder with the reasons and the evidence for it, and its ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compiler.artifact.manifest import write_artifact
from compiler.artifact.schema import RUNGS, LadderFacts, Manifest
from compiler.driver.reports import Source, manifest_facts, measured_facts
from compiler.driver.rungs import Candidate, choose_rungs, describe_rung, name_rungs
from compiler.driver.search.search import SearchResult
from compiler.driver.stages.candidate import with_kernels
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.drift import make_drift_figures
from compiler.driver.stages.outputs import fleet_threshold
from compiler.errors import InternalError
from compiler.fleet import Fleet, Kept, Serve
from compiler.store import StageName
from compiler.store.scratch import scratch_folder


def deliver(context: BuildContext, fleet: Fleet, source: Source, result: SearchResult, *, folder: Path) -> Manifest:
    """Writes the artifact of a device whose search chose one. Returns the facts that its manifest states."""
    made, clock = result.made, context.clock
    if made is None:
        raise InternalError("nothing was chosen, and so there is nothing to deliver", where=context.name)
    serve = context.job.device.serve
    rungs, left_out = _choose(context, serve, result)
    drift, threshold = make_drift_figures(context) if serve else None, fleet_threshold(context)
    with clock.timed(StageName.DELIVER), scratch_folder() as scratch:
        written = scratch / RUNGS  # not the scratch folder itself: who writes an artifact locks the folder around it
        ladder = _write_rungs(context, fleet, source, result, rungs, left_out, written)
        job = context.through(made.plan).job
        facts = manifest_facts(job, fleet, source, made, result)
        facts = replace(facts, ladder=ladder, drift=drift, threshold=threshold)
        write_artifact(
            made.built.artifact,
            made.border.path,
            facts=facts,
            measurements=measured_facts(made, clock.seconds),
            folder=folder,
            rungs=written if len(rungs) > 1 else None,
        )
    return facts


def _choose(
    context: BuildContext, serve: Serve | None, result: SearchResult
) -> tuple[Sequence[Candidate], dict[str, str]]:
    """No ladder where nobody asks for one, or the device must finish its build first."""
    if serve is None or serve.ladder == Kept.OFF or result.made is None:
        return (), {}
    if result.made.built.artifact.deferred:
        context.clock.note("no ladder is delivered: the device must finish the build first")
        return (), {}
    return choose_rungs(context, serve, result)


def _write_rungs(
    context: BuildContext,
    fleet: Fleet,
    source: Source,
    result: SearchResult,
    rungs: Sequence[Candidate],
    left_out: dict[str, str],
    place: Path,
) -> LadderFacts | None:
    """Writes every rung but the delivered build as an artifact of its own; says what the ladder is."""
    serve = context.job.device.serve
    if serve is None or not rungs:
        return None
    described = []
    for rung, name in zip(rungs, name_rungs(rungs), strict=True):
        made, folder = rung.trial.made, None
        if made is not None and rung.trial is not result.chosen:
            own_context = context.through(made.plan)
            folder, made = place / name, with_kernels(own_context, made)
            own = replace(result, chosen=rung.trial, made=made, layers=(), saliency=None, generation=None)
            write_artifact(
                made.built.artifact,
                made.border.path,
                facts=manifest_facts(own_context.job, fleet, source, made, own),
                measurements=measured_facts(made, {}),
                folder=folder,
            )
        described.append(describe_rung(rung, name, folder))
    names = " > ".join(rung.name for rung in described)
    context.clock.note(f"ladder: {names}")
    return LadderFacts(serve.slo_ms, tuple(described), dict(sorted(left_out.items())))
