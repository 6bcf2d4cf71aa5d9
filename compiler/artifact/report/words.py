"""A device's decision, and what of it is proven, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from compiler.artifact.report.read import Device
from compiler.artifact.report.rows import Row, chosen_trial, interval, points_lost
from compiler.artifact.schema import (
    Evidence,
    Gate,
    GateName,
    MeasuredOn,
    ParityStatus,
    Purpose,
    TrialFacts,
    TrialStatus,
    Verdict,
    gate_text,
)

EVIDENCE = {
    Evidence.DEVICE: "measured on the device itself",
    Evidence.HOST: "measured on the machine that built it, with the artifact the device gets; its times are not "
    "the device's",
    Evidence.EMULATOR: "measured under an emulator of the device's processor; counted instructions are exact, times "
    "are not the device's",
    Evidence.ESTIMATED: "computed from the profile, nothing was run",
    Evidence.NONE: "nobody could measure or estimate it",
}
"""Label of a figure → what it stands for."""


SEEN = {
    Evidence.DEVICE: "Executed on the device itself",
    Evidence.HOST: "Executed on the machine that built it, outputs compared",
    Evidence.EMULATOR: "Executed under an emulator of its processor, outputs compared",
    Evidence.NONE: "Built and never executed: its speed is an estimate",
}
"""Evidence of the parity → what was seen of an artifact."""


class ProofState(StrEnum):
    """Whether a statement is shown to be true, neither, or shown to be false."""

    PROVEN = "proven"
    OPEN = "open"
    REFUTED = "refuted"


@dataclass(frozen=True)
class Proof:
    """One statement about the artifact, whether it is proven, and the evidence."""

    state: ProofState
    text: str
    evidence: Evidence


def evidence_texts(rows: Sequence[Row]) -> tuple[str, ...]:
    """What was seen of each delivered device, and what not, in a sentence per kind of evidence."""
    kinds: dict[Evidence, list[str]] = {}
    for row in rows:
        manifest = row.device.manifest
        if manifest:
            kinds.setdefault(manifest.verdict.parity.evidence, []).append(row.device.name)
    return tuple(f"{SEEN.get(kind, kind)}: {', '.join(names)}." for kind, names in kinds.items())


def decision_text(row: Row) -> str:
    """What was built and what it gained and cost, in a paragraph."""
    device = row.device
    if device.failure:
        return f"Nothing was delivered for {device.name}: {device.failure.what}"
    searched = device.searched
    decision = searched.plan.decisions.get("precision") if searched else None
    trial = chosen_trial(device)
    if searched is None or len(searched.trials) < 2 or trial is None:
        reason = decision.reason if decision else searched.decision.reason if searched else ""
        return f"{device.name} gets {row.precision}{_through(row)}: {reason}."
    what = f"{row.precision}{_through(row)}"
    return f"{device.name} gets {what}, trial {trial.number} of {len(searched.trials)}: {_gains(row, trial)}."


def _through(row: Row) -> str:
    """The target that won, where several competed."""
    searched = row.device.searched
    return f" through {row.target}" if searched and searched.contest else ""


def others_text(device: Device) -> tuple[str, ...]:
    """Why each of the other trials was not taken."""
    chosen = chosen_trial(device)
    trials = device.searched.trials if device.searched else ()
    return tuple(f"{trial.number} {_name(trial)}: {_why_not(trial, chosen)}" for trial in trials if trial is not chosen)


def proofs(device: Device) -> tuple[Proof, ...]:
    """What is proven about a delivered artifact, and what is not."""
    return tuple(_proofs(device))


def _gains(row: Row, trial: TrialFacts) -> str:
    parts = []
    if trial.speed and trial.speed.speedup is not None:
        ratio, how = trial.speed.speedup, f"{trial.speed.evidence}{', disturbed' if trial.speed.disturbed else ''}"
        faster = f"{trial.speed.ratio_figure} times as fast as the float original ({how})"
        parts.append(faster if ratio != 1 else "the float original")
    if trial.pruned:
        parts.append(f"{trial.pruned:.0%} of its multiply-accumulates are pruned")
    if trial.footprint:
        parts.append(f"its files take {row.size.text}, {row.size.detail} ({row.size.evidence})")
    if trial.accuracy and trial.accuracy.drop:
        drop = trial.accuracy.drop
        lost = f"{points_lost(drop.drop_pct)} {interval(drop.low_pct, drop.high_pct)}".strip()
        lost = trial.accuracy_words or f"{lost} of {drop.metric}"
        parts.append(f"{lost} ({trial.accuracy.evidence})")
    return "; ".join(parts) or "it is the first that passes"


def _name(trial: TrialFacts) -> str:
    return f"{trial.label}, {trial.pruned:.0%} pruned" if trial.pruned else trial.label


def _why_not(trial: TrialFacts, chosen: TrialFacts | None) -> str:
    if trial.why:
        return f"{trial.status}: {trial.why}"
    if trial.status == TrialStatus.MEASURED and trial.purpose != Purpose.BASELINE:
        return "its accuracy alone was measured, on the way to another trial"
    if trial.status == TrialStatus.MEASURED:
        return "the float original, measured to compare with; the fleet file asks for something else"
    speedup, best = (either.speed.speedup if either and either.speed else None for either in (trial, chosen))
    if speedup is not None and best is not None:
        return (
            f"passed every gate, and is {speedup:.2f} times as fast as float32 where the chosen one is {best:.2f} times"
        )
    return f"{trial.status}; the chosen one ranks before it"


def _border_proofs(verdict: Verdict) -> Iterator[Proof]:
    border = verdict.border
    if border is not None and border.status == ParityStatus.PASSED:
        worst = border.worst_sqnr_db
        how = "equal to the bit" if worst is None else f"worst SQNR {worst:.1f} dB, tolerance {border.tolerance}"
        text = f"The border model computes what the imported model computes: {how}."
        yield Proof(ProofState.PROVEN, text, border.evidence)
    elif border is not None:
        yield Proof(ProofState.OPEN, f"The border model was not compared: {border.reason}.", border.evidence)
    for sentence in verdict.weak_proofs:
        yield Proof(ProofState.OPEN, sentence[0].upper() + sentence[1:] + ".", Evidence.NONE)


def _proofs(device: Device) -> Iterator[Proof]:
    manifest = device.manifest
    if manifest is None:
        return
    parity = manifest.verdict.parity
    worst = parity.worst_sqnr_db
    if parity.status == ParityStatus.PASSED:
        how = "equal to the bit" if worst is None else f"worst SQNR {worst:.1f} dB, tolerance {parity.tolerance}"
        text = f"It computes what the {manifest.verdict.reference} computes: {how}."
        yield Proof(ProofState.PROVEN, text + (f" {parity.reason}" if parity.reason else ""), parity.evidence)
    else:
        yield Proof(
            ProofState.OPEN, f"Its outputs were not compared: {parity.reason or parity.status}.", parity.evidence
        )
    yield from _border_proofs(manifest.verdict)
    trial = chosen_trial(device)
    for gate in manifest.gates:
        doubt = _doubt(gate, trial)
        is_open = bool(doubt) or gate.passed is None
        state = ProofState.REFUTED if gate.refuses else ProofState.OPEN if is_open else ProofState.PROVEN
        why = f" ({gate.rule}; {gate.why})" if gate.why and gate.passed is not None else f" ({gate.rule})"
        yield Proof(state, _sentence(gate_text(gate) + why) + (f" {doubt}" if doubt else ""), gate.evidence)
    if trial and trial.speed and trial.speed.disturbed:
        text = f"the speed-up was measured on a busy machine: {trial.speed.disturbed}"
        yield Proof(ProofState.OPEN, _sentence(text), trial.speed.evidence)
    for warning in manifest.inputs.evaluation.warnings if manifest.inputs.evaluation else ():
        yield Proof(ProofState.OPEN, _sentence(f"evaluation data: {warning}"), Evidence.NONE)
    if manifest.artifact.deferred:
        yield Proof(ProofState.OPEN, f"It is not complete: {manifest.artifact.deferred}", Evidence.NONE)


def _doubt(gate: Gate, trial: TrialFacts | None) -> str:
    """Why a gate that passed proves less than it seems to; empty if it does not."""
    if gate.passed is None:
        return ""
    if gate.evidence == Evidence.ESTIMATED:
        return "Nothing was run for it."
    accuracy = trial.accuracy if trial else None
    if gate.name != GateName.ACCURACY or trial is None or accuracy is None:
        return ""
    if accuracy.measured_on == MeasuredOn.BORDER_MODEL:
        note = f": {accuracy.note}" if accuracy.note else ""
        return f"It is the {accuracy.measured_on}'s accuracy, not the artifact's{note}."
    judged = trial.certified or accuracy.drop
    if judged and judged.high_pct is not None and judged.high_pct > gate.limit:
        spread = interval(judged.low_pct, judged.high_pct)
        return f"The 95 % interval {spread} reaches beyond the limit: more labelled data would settle it."
    return ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
