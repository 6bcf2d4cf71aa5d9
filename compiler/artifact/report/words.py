"""A device's decision, and what of it is proven, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.artifact.report.read import Device
from compiler.artifact.report.rows import Row, chosen_trial, interval, points_lost
from compiler.artifact.schema import Accuracy, Gate, Trial, Verdict

FLOORS = frozenset({"% less", "correlation"})
"""Units of gates whose limit is the least that must be found."""

EVIDENCE = {
    "measured-device": "measured on the device itself",
    "measured-host": "measured on the machine that built it, with the artifact the device gets; its times are not "
    "the device's",
    "measured-emulator": "measured under an emulator of the device's processor; counted instructions are exact, times "
    "are not the device's",
    "estimated": "computed from the profile, nothing was run",
    "none": "nobody could measure or estimate it",
}
"""Label of a figure → what it stands for."""


SEEN = {
    "measured-device": "Executed on the device itself",
    "measured-host": "Executed on the machine that built it, outputs compared",
    "measured-emulator": "Executed under an emulator of its processor, outputs compared",
    "none": "Built and never executed: its speed is an estimate",
}
"""Evidence of the parity → what was seen of an artifact."""


@dataclass(frozen=True)
class Proof:
    """One statement about the artifact: whether it is `proven`, `open` or `refuted`, and the evidence."""

    state: str
    text: str
    evidence: str


def evidence_texts(rows: Sequence[Row]) -> tuple[str, ...]:
    """What was seen of each delivered device, and what not, in a sentence per kind of evidence."""
    kinds: dict[str, list[str]] = {}
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
    reason = searched.plan.choices["precision"].reason if searched and "precision" in searched.plan.choices else ""
    trial = chosen_trial(device)
    if searched is None or len(searched.trials) < 2 or trial is None:
        return f"{device.name} gets {row.precision}: {reason or (searched.decision.reason if searched else '')}."
    return f"{device.name} gets {row.precision}, trial {trial.number} of {len(searched.trials)}: {_gains(row, trial)}."


def others_text(device: Device) -> tuple[str, ...]:
    """Why each of the other trials was not taken."""
    chosen = chosen_trial(device)
    trials = device.searched.trials if device.searched else ()
    return tuple(f"{one.number} {_name(one)}: {_why_not(one, chosen)}" for one in trials if one is not chosen)


def proofs(device: Device) -> tuple[Proof, ...]:
    """What is proven about a delivered artifact, and what is not."""
    return tuple(_proofs(device))


def gate_words(gate: Gate) -> str:
    """One gate in words."""
    if gate.passed is None:
        return f"{gate.name}: not judged: {gate.why or 'nothing measured it'}"
    bound = "at least" if gate.unit in FLOORS else "at most"
    found = "nothing" if gate.value is None else f"{gate.value:.4g} {gate.unit}"
    return f"{gate.name} {'passed' if gate.passed else 'failed'}: {found}, limit {bound} {gate.limit:g}"


def _gains(row: Row, trial: Trial) -> str:
    parts = []
    if trial.speed and trial.speed.speedup is not None:
        ratio, how = trial.speed.speedup, trial.speed.evidence
        parts.append(f"{ratio:.2f} times as fast as the float original ({how})" if ratio != 1 else "the float original")
    if trial.pruned:
        parts.append(f"{trial.pruned:.0%} of its multiply-accumulates are pruned")
    if trial.footprint and trial.footprint.weights_bytes is not None:
        parts.append(f"its files take {row.size.text}, {row.size.detail} ({row.size.evidence})")
    if trial.accuracy and trial.accuracy.drop_pct is not None:
        spread = interval(trial.accuracy.low_pct, trial.accuracy.high_pct)
        lost = f"{points_lost(trial.accuracy.drop_pct)} {spread}".strip()
        parts.append(f"{lost} of {trial.accuracy.metric} ({trial.accuracy.evidence})")
    return "; ".join(parts) or "it is the first that passes"


def _name(trial: Trial) -> str:
    return f"{trial.precision}, {trial.pruned:.0%} pruned" if trial.pruned else trial.precision


def _why_not(trial: Trial, chosen: Trial | None) -> str:
    if trial.why:
        return f"{trial.status}: {trial.why}"
    if trial.status == "measured" and trial.purpose != "baseline":
        return "its accuracy alone was measured, on the way to another trial"
    if trial.status == "measured":
        return "the float original, measured to compare with; the fleet file asks for something else"
    mine, best = (one.speed.speedup if one and one.speed else None for one in (trial, chosen))
    if mine is not None and best is not None:
        return f"passed every gate, and is {mine:.2f} times as fast as float32 where the chosen one is {best:.2f} times"
    return f"{trial.status}; the chosen one ranks before it"


def _border_proofs(verdict: Verdict) -> Iterator[Proof]:
    border = verdict.border
    if border is not None and border.status == "passed":
        worst = border.worst_sqnr_db
        how = "equal to the bit" if worst is None else f"worst SQNR {worst:.1f} dB, tolerance {border.tolerance}"
        yield Proof("proven", f"The border model computes what the imported model computes: {how}.", border.evidence)
    elif border is not None:
        yield Proof("open", f"The border model was not compared: {border.reason}.", border.evidence)
    for sentence in verdict.weak_proofs:
        yield Proof("open", sentence[0].upper() + sentence[1:] + ".", "none")


def _proofs(device: Device) -> Iterator[Proof]:
    manifest = device.manifest
    if manifest is None:
        return
    parity = manifest.verdict.parity
    worst = parity.worst_sqnr_db
    if parity.status == "passed":
        found = "equal to the bit" if worst is None else f"worst SQNR {worst:.1f} dB, tolerance {parity.tolerance}"
        text = f"It computes what the {manifest.verdict.reference} computes: {found}."
        yield Proof("proven", text + (f" {parity.reason}" if parity.reason else ""), parity.evidence)
    else:
        yield Proof("open", f"Its outputs were not compared: {parity.reason or parity.status}.", parity.evidence)
    yield from _border_proofs(manifest.verdict)
    trial = chosen_trial(device)
    for gate in manifest.gates:
        doubt = _doubt(gate, trial.accuracy if trial else None)
        state = "refuted" if gate.passed is False else "open" if doubt or gate.passed is None else "proven"
        why = f" ({gate.rule}; {gate.why})" if gate.why and gate.passed is not None else f" ({gate.rule})"
        yield Proof(state, _sentence(gate_words(gate) + why) + (f" {doubt}" if doubt else ""), gate.evidence)
    if manifest.artifact.deferred:
        yield Proof("open", f"It is not complete: {manifest.artifact.deferred}", "none")


def _doubt(gate: Gate, accuracy: Accuracy | None) -> str:
    """Why a gate that passed proves less than it seems to; empty if it does not."""
    if gate.passed is None:
        return ""
    if gate.evidence == "estimated":
        return "Nothing was run for it."
    if gate.name != "accuracy" or accuracy is None:
        return ""
    if accuracy.measured_on not in ("", "artifact"):
        note = f": {accuracy.note}" if accuracy.note else ""
        return f"It is the {accuracy.measured_on}'s accuracy, not the artifact's{note}."
    if accuracy.high_pct is not None and accuracy.high_pct > gate.limit:
        spread = interval(accuracy.low_pct, accuracy.high_pct)
        return f"The 95 % interval {spread} reaches beyond the limit: more labelled data would settle it."
    return ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
