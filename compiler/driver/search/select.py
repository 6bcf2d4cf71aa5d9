"""Which trial is delivered, in words; or why none is, and what limits would let one pass."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.artifact.schema import Purpose
from compiler.driver.search.trial import Trial
from compiler.errors import CompilerError, GateFailed, UnsupportedModel
from compiler.evaluate.gates import Gate, limits_text, nearest_limits

SAME_SPEED = 0.03
"""Within this share of the fastest the smaller one wins: measurements of speed tell no less apart."""


def choose_trial(trials: Sequence[Trial]) -> Trial | None:
    """The fastest of those that pass and pay; the smaller one where two are about as fast."""
    passed = [trial for trial in trials if trial.passed and trial.purpose != Purpose.BASELINE and pays(trial, trials)]
    return fastest(passed) if passed else None


def fastest(trials: Sequence[Trial]) -> Trial:
    """The fastest of some trials; the smaller one where two are about as fast."""
    best = max(_speedup(trial) for trial in trials)
    fast = [trial for trial in trials if _speedup(trial) >= best * (1.0 - SAME_SPEED)]
    return min(fast, key=lambda trial: (_bytes(trial), -_speedup(trial), trial.number))


def beaten_by(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """What passes and is faster than this one, by figures of the same kind; None where it could still be chosen."""
    best = choose_trial(trials)
    if best is None or best is trial or best.speed is None or trial.speed is None:
        return None
    is_alike = best.speed.evidence == trial.speed.evidence
    return best if is_alike and _speedup(trial) < _speedup(best) * (1.0 - SAME_SPEED) else None


def pays(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether pruning that nobody forced makes the device faster than anything unpruned that passes."""
    if trial.purpose != Purpose.PRUNING:
        return True
    others = [one for one in trials if one.passed and one.purpose not in (Purpose.BASELINE, Purpose.PRUNING)]
    return all(_speedup(trial) * (1.0 - SAME_SPEED) > _speedup(one) for one in others)


def explain_choice(chosen: Trial, trials: Sequence[Trial]) -> str:
    """Why this one, against the others."""
    others = [trial for trial in trials if trial is not chosen and trial.purpose == Purpose.CANDIDATE]
    lines = [f"the search chose it: {describe(chosen)}"]
    lines += [f"{trial.precision}: {trial.why or describe(trial)}" for trial in others]
    return "; ".join(lines)


def explain_failure(trials: Sequence[Trial], where: str) -> CompilerError:
    """The error of a device none of whose candidates passes, with every candidate's figures.

    A device whose every candidate failed to be built has the first one's error.
    """
    judged = [trial for trial in trials if trial.gates and trial.made is not None and trial.purpose != Purpose.BASELINE]
    if not judged:
        return _unbuilt(trials, where)
    shown = [trial for trial in trials if trial.purpose != Purpose.BASELINE and trial.why]
    lines = [f"  - {trial.precision}{_variant(trial)}: {trial.why}" for trial in shown]
    nearest = min(judged, key=lambda trial: (sum(map(_miss, trial.gates)), trial.number))
    needed = limits_text(nearest_limits(nearest.gates))
    return GateFailed(
        "no candidate passes the gates of this device:\n" + "\n".join(lines),
        where=where,
        remedy=f"Nearest: {nearest.precision}{_variant(nearest)} would pass with `{needed}`.",
    )


def _unbuilt(trials: Sequence[Trial], where: str) -> CompilerError:
    """Why there is nothing that a gate could judge: the first error, or that no candidate was left to build."""
    first_error = next((trial.error for trial in trials if trial.error), None)
    return first_error or UnsupportedModel(
        "the model is quantized already, and every precision of this device would convert it",
        where=where,
        remedy="Give the float model, or a precision of this device that leaves the model as it is.",
    )


def describe(trial: Trial) -> str:
    """A trial's figures in a line."""
    parts = []
    if trial.speed and trial.speed.speedup is not None:
        parts.append(f"{trial.speed.speedup:.2f} × float32 ({trial.speed.evidence})")
    if trial.footprint:
        parts.append(f"{trial.footprint.weights_bytes / (1 << 20):.1f} MiB of weights")
    if trial.pruned:
        parts.append(f"{trial.pruned:.0%} of the multiply-accumulates pruned")
    if trial.accuracy and trial.accuracy.drop:
        parts.append(f"{trial.accuracy.drop.drop_pct:.2f} points of {trial.accuracy.drop.metric} lost")
    return ", ".join(parts) or "nothing measured"


def _variant(trial: Trial) -> str:
    kept = f" with {len(trial.kept_float)} layers in float" if trial.kept_float else ""
    return kept + (f" pruned by {trial.pruned:.0%}" if trial.pruned else "")


def _speedup(trial: Trial) -> float:
    return trial.speed.speedup if trial.speed and trial.speed.speedup is not None else 1.0


def _bytes(trial: Trial) -> int:
    return trial.footprint.weights_bytes if trial.footprint else 0


def _miss(gate: Gate) -> float:
    """How far a gate was missed, against its limit."""
    if gate.passed is not False or gate.value is None:
        return 0.0
    return abs(gate.value - gate.limit) / max(1.0, abs(gate.limit))
