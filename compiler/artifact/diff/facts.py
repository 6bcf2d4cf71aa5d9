"""What of a device is compared: named facts, cause before effect, each with the facts that feed it.

inputs, tools → plan → trials → decision → layers → artifact → figures → verdicts
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.artifact.report import Device, payload_bytes
from compiler.artifact.schema import Gate, Manifest, Searched, Trial
from compiler.store import canonical_json

MIB = 1 << 20

GIVEN = "it is given from outside"
MEASURED = "nothing that feeds it changed: it was measured again, and noise, load or another machine moved it"
TUNED = "the tuning log has other records"
ASKED = "the fleet file or the command line asks for it"
UNKNOWN = "nothing that is recorded explains it"

MADE_OF = ("model", "profile", "dims", "samples", "tool", "fleetc")
"""What everything that is made follows from."""

BUILT_OF = ("precision", "choice.pruning", "files", "tool", "fleetc")
"""What every figure of the artifact follows from, apart from the chance of measuring it."""

GATED = {
    "accuracy": ("accuracy", "limit.accuracy_drop_pct"),
    "memory: weights": ("size", "limit.memory_reduction_pct"),
    "memory: run": ("memory when run", "limit.memory_reduction_pct"),
    "latency": ("latency", "instructions", "limit.latency_ms"),
    "saliency": ("saliency", "limit.saliency_correlation_min"),
}
"""Gate → the figures and the limit that decide it."""

TRIED = {
    "accuracy": ("{}.accuracy", "limit.accuracy_drop_pct"),
    "memory: weights": ("{}.size", "limit.memory_reduction_pct"),
    "memory: run": ("{}.memory", "limit.memory_reduction_pct"),
    "latency": ("{}.speed", "limit.latency_ms"),
}
"""The same of a trial, whose name takes the place of the braces."""


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
    """

    section: str
    name: str
    value: Any
    feeds: tuple[str, ...] = ()
    alone: str = UNKNOWN
    is_opaque: bool = False
    shown: str = ""


def facts_of(device: Device, *, model: str, fleetc: str) -> dict[str, Fact]:
    """Everything that is compared of a device, by name; a device that failed early has little.

    Args:
        device: A device of a build.
        model: SHA-256 of the model it was built from.
        fleetc: The version that built it.
    """
    found = [Fact("inputs", "model", model, alone=GIVEN, shown=model[:12])]
    if device.manifest:
        found += _inputs(device.manifest)
    if device.searched:
        found += _planned(device.searched)
    found.append(Fact("tools", "fleetc", fleetc, alone=GIVEN))
    if device.searched:
        found += _searched(device.searched)
    if device.manifest:
        found += _made(device.manifest)
        found += _figures(device, device.manifest)
    found += _verdicts(device)
    return {fact.name: fact for fact in found}


def _inputs(manifest: Manifest) -> Iterator[Fact]:
    samples, judged = manifest.inputs.samples, manifest.inputs.evaluation
    yield Fact("inputs", "samples", samples.sha256, alone=GIVEN, shown=f"{samples.origin} {samples.sha256[:12]}")
    if judged:
        shown = f"{judged.task} by {judged.metric} on {judged.origin} {judged.sha256[:12]}"
        yield Fact("inputs", "evaluation", [judged.task, judged.metric, judged.sha256], alone=GIVEN, shown=shown)
    for key, value in _leaves(manifest.inputs.profile.facts):
        yield Fact("inputs", f"profile.{key}", value, alone=GIVEN)


def _planned(found: Searched) -> Iterator[Fact]:
    plan = found.plan
    shown = f"{plan.profile} {plan.profile_digest[:12]}"
    yield Fact("inputs", "profile", plan.profile_digest, ("profile",), GIVEN, is_opaque=True, shown=shown)
    for name, limit in vars(plan.gates.limits).items():
        if limit is not None:
            yield Fact("inputs", f"limit.{name}", limit, alone=ASKED)
    for name, sizes in plan.dims.items():
        yield Fact("inputs", f"dims.{name}", str(sizes), alone=ASKED)
    for name, version in plan.toolchain.items():
        yield Fact("tools", f"tool.{name}", version, alone=GIVEN)
    names = [one.precision for one in plan.candidates]
    feeds = ("profile", "evaluation", "limit", "tool", "fleetc")
    yield Fact("plan", "candidates", names, feeds, ASKED, shown=", ".join(names))


def _searched(found: Searched) -> Iterator[Fact]:
    trials = {one.precision: one for one in found.trials}  # the last of each precision: what the search came to
    trials |= {found.chosen.precision: found.chosen} if found.chosen else {}
    for name, trial in trials.items():
        yield from _trial(f"trial.{name}", trial)
    chosen = found.decision.precision
    tried = (f"trial.{chosen}",) if chosen else tuple(f"=trial.{name}" for name in trials)
    yield Fact("decision", "precision", chosen, ("candidates", *tried), shown=chosen or "none")
    for name, choice in found.plan.choices.items() if chosen else ():
        if name not in ("precision", *vars(found.plan.gates.limits)):
            alone = {"tuning": TUNED, "pruning": ASKED}.get(name, UNKNOWN)
            yield Fact("decision", f"choice.{name}", choice.value, ("precision", "profile", "tool", "fleetc"), alone)
    for layer in found.layers:
        feeds = ("precision", f"trial.{chosen}.variant", "model", "tool", "fleetc")
        yield Fact("layers", f"layer.{layer.node}", layer.precision, feeds)


def _trial(name: str, trial: Trial) -> Iterator[Fact]:
    made = (f"{name}.variant", *MADE_OF)
    kept, options = sorted(trial.kept_float), dict(trial.options or {})
    asked = ("limit.accuracy_drop_pct", "evaluation", *MADE_OF)
    shown = f"{len(kept)} layers in float" + (f", observer {options['observer']}" if "observer" in options else "")
    if kept or options:
        yield Fact("trials", f"{name}.variant", [kept, options], asked, shown=shown)
    if trial.accuracy and trial.accuracy.drop_pct is not None:
        lost, judged = trial.accuracy.drop_pct, trial.accuracy.judged_pct
        bound = judged is not None and trial.accuracy.rule == "bound"
        shown = f"{lost:.2f} points lost" + (f", {judged:.2f} by its bound" if bound else "")
        feeds = ("evaluation", *made, "limit.accuracy_drop_pct")  # the limit decides whether the bound is judged
        yield Fact("trials", f"{name}.accuracy", [lost, judged], feeds, MEASURED, shown=shown)
    if trial.footprint and trial.footprint.weights_bytes is not None:
        size = trial.footprint.weights_bytes
        yield Fact("trials", f"{name}.size", size, made, shown=f"{size / MIB:.2f} MiB")
    if trial.footprint and trial.footprint.run_bytes is not None:
        size = trial.footprint.run_bytes
        yield Fact("trials", f"{name}.memory", size, made, MEASURED, shown=f"{size / MIB:.1f} MiB when run")
    if trial.speed and trial.speed.speedup is not None:
        ratio = round(trial.speed.speedup, 3)
        yield Fact("trials", f"{name}.speed", ratio, made, MEASURED, shown=f"{ratio:.2f} × float32")
    outcome = f"{trial.status}: {trial.why}" if trial.why else trial.status
    yield Fact("trials", name, trial.status, _outcome_feeds(name, trial), shown=outcome)


def _outcome_feeds(name: str, trial: Trial) -> tuple[str, ...]:
    """The figures and limits of the gates that it failed, or all that it was made of where it could not be made."""
    if trial.status == "failed":
        return (f"{name}.variant", *MADE_OF)
    failed = [gate.name for gate in trial.gates if gate.passed is False and gate.name in TRIED]
    decided = [feed.format(name) for gate in failed for feed in TRIED[gate]]
    return (*dict.fromkeys(decided), "candidates")


def _made(manifest: Manifest) -> Iterator[Fact]:
    names = [one.name for one in manifest.passes]
    yield Fact("decision", "passes", names, ("precision", "profile", "fleetc"), ASKED, shown=f"{len(names)} passes")
    variant = f"trial.{manifest.decision.precision}.variant"
    graph, border = ("precision", variant, "pruned", "recovered", "passes", *MADE_OF), manifest.border
    if manifest.pruning:
        shown = f"{manifest.pruning.ratio:.0%} of the multiply-accumulates"
        yield Fact("artifact", "pruned", manifest.pruning.ratio, ("choice.pruning", *MADE_OF), shown=shown)
    if manifest.pruning and manifest.pruning.recovered:
        found = manifest.pruning.recovered
        feeds = ("pruned", "choice.pruning", *MADE_OF)
        yield Fact("artifact", "recovered", [found.steps, found.best.value], feeds, MEASURED, shown=found.words)
    yield Fact("artifact", "border model", border.sha256, graph, is_opaque=True, shown=border.sha256[:12])
    yield Fact("artifact", "nodes", border.nodes, graph, shown=f"{border.nodes} nodes")
    for one in manifest.tuning:
        shown = ", ".join(f"{name}={value}" for name, value in one.choice.items()) + f" ({one.basis})"
        chosen = ("precision", "profile", "model", "tool", "fleetc")
        yield Fact("artifact", f"kernel.{one.kernel}", dict(one.choice), chosen, TUNED, shown=shown)
    for name, version in manifest.artifact.tools.items():
        yield Fact("tools", f"tool.{name}", version, alone=GIVEN)
    files = {name: file.sha256 for name, file in manifest.files.items() if name.startswith("payload/")}
    whole = ("precision", "border model", "kernel", "choice.threads", "profile", "dims", "tool", "fleetc")
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
    if trial and trial.accuracy and trial.accuracy.drop_pct is not None:
        lost = trial.accuracy.drop_pct
        judged = ("evaluation", *BUILT_OF)
        yield Fact("figures", "accuracy", lost, judged, MEASURED, shown=f"{lost:.2f} points lost")
    if manifest.saliency and manifest.saliency.correlation is not None:
        alike = round(manifest.saliency.correlation, 3)
        yield Fact("figures", "saliency", alike, ("evaluation", *BUILT_OF), MEASURED, shown=f"correlation {alike:.3f}")
    worst = manifest.verdict.parity.worst_sqnr_db
    if worst is not None:
        yield Fact("figures", "SQNR", round(worst, 3), ("samples", *BUILT_OF), MEASURED, shown=f"{worst:.1f} dB")


def _verdicts(device: Device) -> Iterator[Fact]:
    for gate in device.searched.gates if device.searched else ():
        decided = (*GATED.get(gate.name, ("limit",)), "precision")
        yield Fact("verdicts", f"gate.{gate.name}", gate.passed, decided, MEASURED, shown=_gate(gate))
    if device.manifest:
        parity = device.manifest.verdict.parity
        shown = f"{parity.status} by tolerance {parity.tolerance}"
        compared = ("precision", "SQNR", "files", "samples")
        yield Fact("verdicts", "parity", [parity.status, parity.tolerance], compared, MEASURED, shown=shown)
    why = device.failure.what.splitlines()[0].rstrip(":") if device.failure else ""
    came_to = ("precision", "parity") if device.searched else MADE_OF
    yield Fact("verdicts", "status", device.status, came_to, shown=f"{device.status}: {why}" if why else device.status)


def _gate(gate: Gate) -> str:
    if gate.passed is None or gate.value is None:
        return f"not judged: {gate.why}"
    return f"{'passed' if gate.passed else 'failed'}: {gate.value:.4g} {gate.unit}, limit {gate.limit:g}"


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{path}{key}.")
        elif path or key not in ("schema", "name", "description"):
            yield f"{path}{key}", item
