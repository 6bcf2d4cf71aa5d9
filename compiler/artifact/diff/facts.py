"""What of a device is compared: named facts, cause before effect, each with the facts that feed it.

inputs, tools → plan → trials → decision → layers → artifact → figures → verdicts
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.artifact.report import Device, payload_bytes
from compiler.artifact.schema import GateName, Manifest, Searched, TrialFacts, TrialStatus, verdict_text
from compiler.store import canonical_json

MIB = 1 << 20

GIVEN = "it is given from outside"
MEASURED = "nothing that feeds it changed: it was measured again, and noise, load or another machine moved it"
TUNED = "the tuning log has other records"
ASKED = "the fleet file or the command line asks for it"
UNKNOWN = "nothing that is recorded explains it"

MADE_OF = ("model", "profile", "target", "dims", "samples", "tool", "fleetc")
"""What everything that is made follows from."""

BUILT_OF = ("target", "precision", "decision.pruning", "files", "tool", "fleetc")
"""What every figure of the artifact follows from, apart from the chance of measuring it."""

GATED = {
    GateName.ACCURACY: ("accuracy", "limit.accuracy_drop_pct"),
    GateName.MEMORY_WEIGHTS: ("size", "limit.memory_reduction_pct"),
    GateName.MEMORY_RUN: ("memory when run", "limit.memory_reduction_pct"),
    GateName.MEMORY_PEAK: ("memory when run", "limit.memory_mib"),
    GateName.LATENCY: ("latency", "instructions", "limit.latency_ms"),
    GateName.SALIENCY: ("saliency", "limit.saliency_correlation_min"),
}
"""Gate → the figures and the limit that decide it."""

TRIED = {
    GateName.ACCURACY: ("{}.accuracy", "limit.accuracy_drop_pct"),
    GateName.MEMORY_WEIGHTS: ("{}.size", "limit.memory_reduction_pct"),
    GateName.MEMORY_RUN: ("{}.memory", "limit.memory_reduction_pct"),
    GateName.MEMORY_PEAK: ("{}.memory", "limit.memory_mib"),
    GateName.LATENCY: ("{}.speed", "limit.latency_ms"),
    GateName.SALIENCY: ("{}.saliency", "limit.saliency_correlation_min"),
}
"""The same of a trial, whose name takes the place of the braces."""


VERDICTS = {True: "passed", False: "failed", None: "not judged"}


@dataclass(frozen=True)
class Fact:
    """One thing that two builds may differ in.

    Args:
        section: `inputs`, `tools`, `plan`, `trials`, `decision`, `layers`, `artifact`, `figures` or `verdicts`.
        name: Its name; what stands before the first `.` is its family.
        value: JSON-ready; two builds agree where it is equal.
        feeds: Names or families of the facts that it follows from, most telling first; `=` before a name leaves its
            family out.
        alone: What it means if it changes and none of those does.
        is_opaque: Whether it says no more than that something differs (a digest): explanations look through it.
        shown: Its value in words; empty where the value is.
        brief: The same without its reason; empty where `shown` has none.
    """

    section: str
    name: str
    value: Any
    feeds: tuple[str, ...] = ()
    alone: str = UNKNOWN
    is_opaque: bool = False
    shown: str = ""
    brief: str = ""


def facts_of(device: Device, *, model: str, fleetc: str) -> dict[str, Fact]:
    """Everything that is compared of a device, by name; a device that failed early has little.

    Args:
        device: A device of a build.
        model: SHA-256 of the model it was built from.
        fleetc: The version that built it.
    """
    facts = [Fact("inputs", "model", model, alone=GIVEN, shown=model[:12])]
    if device.manifest:
        facts += _inputs(device.manifest)
    if device.searched:
        facts += _planned(device.searched)
    facts.append(Fact("tools", "fleetc", fleetc, alone=GIVEN))
    if device.searched:
        facts += _searched(device.searched)
    if device.manifest:
        facts += _made(device.manifest)
        facts += _figures(device, device.manifest)
    facts += _verdicts(device)
    return {fact.name: fact for fact in facts}


def _inputs(manifest: Manifest) -> Iterator[Fact]:
    samples, judged = manifest.inputs.samples, manifest.inputs.evaluation
    yield Fact("inputs", "samples", samples.sha256, alone=GIVEN, shown=f"{samples.origin} {samples.sha256[:12]}")
    if judged:
        shown = f"{judged.task} by {judged.metric} on {judged.origin} {judged.sha256[:12]}"
        yield Fact("inputs", "evaluation", [judged.task, judged.metric, judged.sha256], alone=GIVEN, shown=shown)
    for key, value in _leaves(manifest.inputs.profile.facts):
        yield Fact("inputs", f"profile.{key}", value, alone=GIVEN)


def _planned(searched: Searched) -> Iterator[Fact]:
    plan = searched.plan
    shown = f"{plan.profile} {plan.profile_digest[:12]}"
    yield Fact("inputs", "profile", plan.profile_digest, ("profile",), GIVEN, is_opaque=True, shown=shown)
    for name, limit in vars(plan.gates.limits).items():
        if limit is not None:
            yield Fact("inputs", f"limit.{name}", limit, alone=ASKED)
    for name, sizes in plan.dims.items():
        yield Fact("inputs", f"dims.{name}", str(sizes), alone=ASKED)
    for name, version in plan.toolchain.items():
        yield Fact("tools", f"tool.{name}", version, alone=GIVEN)
    names = [candidate.precision for candidate in plan.candidates]
    feeds = ("profile", "evaluation", "limit", "tool", "fleetc")
    yield Fact("plan", "candidates", names, feeds, ASKED, shown=", ".join(names))
    competing = [target.target for target in plan.targets]
    if competing:
        yield Fact("plan", "targets", competing, ("profile",), ASKED, shown=", ".join(competing))


def _searched(searched: Searched) -> Iterator[Fact]:
    trials = {trial.label: trial for trial in searched.trials}  # the last of each precision: what it came to
    trials |= {searched.chosen.label: searched.chosen} if searched.chosen else {}
    yield from _contest(searched)
    for name, trial in trials.items():
        yield from _trial(f"trial.{name}", trial)
    chosen, label = searched.decision.precision, searched.chosen.label if searched.chosen else ""
    tried = (f"trial.{label}",) if chosen else tuple(f"=trial.{name}" for name in trials)
    yield Fact("decision", "precision", chosen, ("target", "candidates", *tried), shown=chosen or "none")
    for name, decision in searched.plan.decisions.items() if chosen else ():
        if name not in ("precision", "target", *vars(searched.plan.gates.limits)):
            alone = {"tuning": TUNED, "pruning": ASKED}.get(name, UNKNOWN)
            made = ("precision", "profile", "tool", "fleetc")
            yield Fact("decision", f"decision.{name}", decision.value, made, alone)
    for layer in searched.layers:
        feeds = ("precision", "target", f"trial.{label}.variant", "model", "tool", "fleetc")
        yield Fact("layers", f"layer.{layer.node}", layer.precision, feeds)


def _contest(searched: Searched) -> Iterator[Fact]:
    """Which target won, and what the races showed; nothing where the device has one target."""
    for competitor in searched.contest:
        if competitor.race and competitor.race.speedup is not None:
            ratio = round(competitor.race.speedup, 3)
            name, shown = f"race.{competitor.target}", f"{ratio:.2f} × the target that was raced against"
            yield Fact("trials", name, ratio, ("model", "dims", "tool", "fleetc"), MEASURED, shown=shown)
    for last in searched.final_races:
        pair, shown = " against ".join(sorted(last.names)), str(last)
        feeds = ("model", "dims", "tool", "fleetc")
        yield Fact("trials", f"race.{pair}", (last.names[0], last.settled), feeds, MEASURED, shown=shown)
    if searched.contest and searched.chosen:
        yield Fact("decision", "target", searched.plan.target, ("race", "trial", "targets"))


def _trial(name: str, trial: TrialFacts) -> Iterator[Fact]:
    made = (f"{name}.variant", *MADE_OF)
    layers, options = sorted(trial.kept_float), dict(trial.options or {})
    asked = ("limit.accuracy_drop_pct", "evaluation", *MADE_OF)
    shown = f"{len(layers)} layers in float" + (f", observer {options['observer']}" if "observer" in options else "")
    if layers or options:
        yield Fact("trials", f"{name}.variant", [layers, options], asked, shown=shown)
    if trial.accuracy and trial.accuracy.drop:
        drop = trial.accuracy.drop
        lost, judged = drop.drop_pct, drop.judged_pct
        shown = f"{lost:.2f} points lost" + (f", {judged:.2f} by its bound" if drop.rule == "bound" else "")
        feeds = ("evaluation", *made, "limit.accuracy_drop_pct")  # the limit decides whether the bound is judged
        yield Fact("trials", f"{name}.accuracy", [lost, judged], feeds, MEASURED, shown=shown)
    if trial.footprint:
        size = trial.footprint.weights_bytes
        yield Fact("trials", f"{name}.size", size, made, shown=f"{size / MIB:.2f} MiB")
    if trial.footprint and trial.footprint.run_bytes is not None:
        size = trial.footprint.run_bytes
        yield Fact("trials", f"{name}.memory", size, made, MEASURED, shown=f"{size / MIB:.1f} MiB when run")
    if trial.speed and trial.speed.speedup is not None:
        ratio = round(trial.speed.speedup, 3)
        yield Fact("trials", f"{name}.speed", ratio, made, MEASURED, shown=f"{ratio:.2f} × float32")
    if trial.saliency and trial.saliency.correlation is not None:
        similar = round(trial.saliency.correlation, 3)
        yield Fact("trials", f"{name}.saliency", similar, made, MEASURED, shown=f"correlation {similar:.3f}")
    status = str(trial.status)
    outcome = f"{status}: {trial.why}" if trial.why else status
    yield Fact("trials", name, status, _outcome_feeds(name, trial), shown=outcome, brief=status)


def _outcome_feeds(name: str, trial: TrialFacts) -> tuple[str, ...]:
    """The figures and limits of the gates that it failed, or all that it was made of where it could not be made."""
    if trial.status == TrialStatus.FAILED:
        return (f"{name}.variant", *MADE_OF)
    failed = [gate.name for gate in trial.gates if gate.passed is False and gate.name in TRIED]
    decided = [feed.format(name) for gate in failed for feed in TRIED[gate]]
    return (*dict.fromkeys(decided), "candidates")


def _made(manifest: Manifest) -> Iterator[Fact]:
    names = [record.name for record in manifest.passes]
    yield Fact("decision", "passes", names, ("precision", "profile", "fleetc"), ASKED, shown=f"{len(names)} passes")
    variant = f"trial.{manifest.chosen.label if manifest.chosen else ''}.variant"
    graph, border = ("precision", variant, "pruned", "recovered", "passes", *MADE_OF), manifest.border
    if manifest.pruning:
        shown = f"{manifest.pruning.ratio:.0%} of the multiply-accumulates"
        yield Fact("artifact", "pruned", manifest.pruning.ratio, ("decision.pruning", *MADE_OF), shown=shown)
    if manifest.pruning and manifest.pruning.recovered:
        recovered = manifest.pruning.recovered
        feeds, value = ("pruned", "decision.pruning", *MADE_OF), [recovered.steps, recovered.best.value]
        yield Fact("artifact", "recovered", value, feeds, MEASURED, shown=recovered.text)
    yield Fact("artifact", "border model", border.sha256, graph, is_opaque=True, shown=border.sha256[:12])
    yield Fact("artifact", "nodes", border.nodes, graph, shown=f"{border.nodes} nodes")
    for kernel in manifest.tuning:
        shown = ", ".join(f"{name}={value}" for name, value in kernel.choice.items()) + f" ({kernel.basis})"
        chosen = ("precision", "profile", "model", "tool", "fleetc")
        yield Fact("artifact", f"kernel.{kernel.kernel}", dict(kernel.choice), chosen, TUNED, shown=shown)
    for name, version in manifest.artifact.tools.items():
        yield Fact("tools", f"tool.{name}", version, alone=GIVEN)
    files = {name: file.sha256 for name, file in manifest.files.items() if name.startswith("payload/")}
    whole = ("target", "precision", "border model", "kernel", "decision.threads", "profile", "dims", "tool", "fleetc")
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    yield Fact("artifact", "files", digest, whole, is_opaque=True, shown=digest[:12])


def _figures(device: Device, manifest: Manifest) -> Iterator[Fact]:
    size, measured, trial = payload_bytes(device), device.measurements, manifest.chosen
    yield Fact("figures", "size", size, BUILT_OF, shown=f"{size / MIB:.2f} MiB")
    if trial and trial.footprint and trial.footprint.run_bytes is not None:
        run = trial.footprint.run_bytes
        yield Fact("figures", "memory when run", run, BUILT_OF, MEASURED, shown=f"{run / MIB:.1f} MiB")
    for row in measured.latency:
        yield Fact("figures", f"latency.{row.sizes}", row.p50_ms, BUILT_OF, MEASURED, shown=f"{row.p50_ms:.2f} ms")
    if measured.instructions:
        count = measured.instructions
        yield Fact("figures", "instructions", count, BUILT_OF, shown=f"{count / 1e6:.2f} M instructions")
    if trial and trial.accuracy and trial.accuracy.drop:
        lost = trial.accuracy.drop.drop_pct
        judged = ("evaluation", *BUILT_OF)
        yield Fact("figures", "accuracy", lost, judged, MEASURED, shown=f"{lost:.2f} points lost")
    if manifest.saliency and manifest.saliency.correlation is not None:
        similar, feeds = round(manifest.saliency.correlation, 3), ("evaluation", *BUILT_OF)
        yield Fact("figures", "saliency", similar, feeds, MEASURED, shown=f"correlation {similar:.3f}")
    worst = manifest.verdict.parity.worst_sqnr_db
    if worst is not None:
        yield Fact("figures", "SQNR", round(worst, 3), ("samples", *BUILT_OF), MEASURED, shown=f"{worst:.1f} dB")


def _verdicts(device: Device) -> Iterator[Fact]:
    for gate in device.searched.gates if device.searched else ():
        decided = (*GATED.get(gate.name, ("limit",)), "precision")
        shown, brief = verdict_text(gate), VERDICTS[gate.passed]
        yield Fact("verdicts", f"gate.{gate.name}", gate.passed, decided, MEASURED, shown=shown, brief=brief)
    if device.manifest:
        parity = device.manifest.verdict.parity
        shown = f"{parity.status} by tolerance {parity.tolerance}"
        compared = ("precision", "SQNR", "files", "samples")
        yield Fact("verdicts", "parity", [str(parity.status), parity.tolerance], compared, MEASURED, shown=shown)
    why = device.failure.what.splitlines()[0].rstrip(":") if device.failure else ""
    came_to = ("precision", "parity") if device.searched else MADE_OF
    status = str(device.status)
    yield Fact("verdicts", "status", status, came_to, shown=f"{status}: {why}" if why else status, brief=status)


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{path}{key}.")
        elif path or key not in ("schema", "name", "description"):
            yield f"{path}{key}", item
