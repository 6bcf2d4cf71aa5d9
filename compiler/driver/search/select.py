"""Which trial is delivered, in words; or why none is, and what limits would let one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compiler.artifact import Evidence
from compiler.artifact.schema import FinalRace, GateName, Purpose, SpeedUnit
from compiler.driver.search.trial import Trial
from compiler.errors import CompilerError, GateFailed, UnsupportedModel, combine
from compiler.evaluate.gates import Gate, limits_text, nearest_limits

SAME_SPEED = 0.03
"""Within this share of the fastest the smaller one wins: measurements of speed tell no less apart."""

_RANKS = (Evidence.NONE, Evidence.ESTIMATED, Evidence.EMULATOR, Evidence.HOST, Evidence.DEVICE)
"""Evidence of a speed, the weakest first: a figure is compared with those of its own kind, and a better kind wins."""


def choose_trial(trials: Sequence[Trial]) -> Trial | None:
    """The one to deliver of those that pass and pay, by its figures against float32; None if there is none."""
    passed = deliverable(trials)
    return fastest(passed) if passed else None


def deliverable(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that pass and pay."""
    return [trial for trial in trials if trial.passed and trial.purpose != Purpose.BASELINE and pays(trial, trials)]


def contenders(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that may be the fastest of those that can be delivered; none where one alone may, or none was timed.

    A trial may be it where its race against float32 was disturbed, and where its interval reaches that of the fastest
    whose race was not.
    """
    passed = deliverable(trials)
    strongest = max(map(_rank, passed), default=None)
    comparable = [trial for trial in passed if _rank(trial) == strongest and _is_timed(trial)]
    sure = max(map(undisturbed, comparable), default=0.0)
    close = [trial for trial in comparable if _is_disturbed(trial) or _most_speedup(trial) >= sure * (1.0 - SAME_SPEED)]
    return close if len(close) > 1 else []


def fastest(trials: Sequence[Trial]) -> Trial:
    """The fastest of the trials with the best evidence; the smallest of those that are about as fast.

    Of an interval the lower end decides which is the fastest; those whose own figure reaches it are about as fast.
    """
    strongest = max(_rank(trial) for trial in trials)
    comparable = [trial for trial in trials if _rank(trial) == strongest]
    best = max(_least_speedup(trial) for trial in comparable)
    fast = [trial for trial in comparable if _speedup(trial) >= best * (1.0 - SAME_SPEED)]
    return min(fast, key=lambda trial: (_bytes(trial), -_speedup(trial), trial.number))


def preference(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that could be delivered if their accuracy held, the preferred one first.

    A trial of accuracy alone was not built: it stands behind the build of its precision whose form it varies, the more
    pruned form first, then the one with fewer layers in float.
    """
    built = [trial for trial in trials if trial.made and not trial.error and _holds_otherwise(trial)]
    speeds = {trial.label: (_rank(trial), _least_speedup(trial)) for trial in reversed(built)}
    possible = [
        trial
        for trial in trials
        if not trial.error and trial.purpose != Purpose.BASELINE and (trial in built or trial.made is None)
    ]
    ranked = [(speeds[trial.label], trial) for trial in possible if trial.label in speeds]
    return [trial for _, trial in sorted(ranked, key=lambda item: _place(*item))]


def _place(sibling: tuple[tuple[bool, int], float], trial: Trial) -> tuple[float, ...]:
    (judged, evidence), speedup = sibling
    if trial.made is not None:
        (judged, evidence), speedup = _rank(trial), _least_speedup(trial)
    return -judged, -evidence, -speedup, -trial.pruned, len(trial.kept_float), trial.number


def _holds_otherwise(trial: Trial) -> bool:
    return not any(gate.refuses for gate in trial.gates if gate.name != GateName.ACCURACY)


def beaten_by(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The passing trial that no other form of this one could replace; None where one could still be chosen."""
    best = choose_trial(trials)
    if best is None or best is trial or best.speed is None or trial.speed is None:
        return None
    if best.speed.disturbed or trial.speed.disturbed:
        return None
    if _rank(best) != _rank(trial):
        return best if _rank(best) > _rank(trial) else None
    return best if _speedup(trial) < _least_speedup(best) * (1.0 - SAME_SPEED) else None


def undisturbed(trial: Trial) -> float:
    """The least that a trial's speed-up can be: the lower end of its interval, 0 where its race was disturbed."""
    return 0.0 if _is_disturbed(trial) else _least_speedup(trial)


def out_of_reach(
    speedup: float, trials: Sequence[Trial], least: Callable[[Trial], float] = undisturbed
) -> Trial | None:
    """The passing trial that a candidate of at most that speed-up could not replace; None where it still might.

    Only a trial whose accuracy was judged, and whose speed has the best evidence so far, rules others out.

    Args:
        speedup: The most that is expected of the candidate.
        trials: All so far.
        least: The least that a trial's speed-up can be.
    """
    best = choose_trial(trials)
    if best is None or best.speed is None or best.speed.speedup is None:
        return None
    strongest = max(_RANKS.index(trial.speed.evidence) for trial in trials if trial.speed)
    if _rank(best) < (True, strongest):
        return None
    return best if speedup < least(best) * (1.0 - SAME_SPEED) else None


def pays(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether pruning that nobody forced makes the device faster than anything unpruned that passes."""
    if trial.purpose != Purpose.PRUNING:
        return True
    others = [other for other in trials if other.passed and other.purpose not in (Purpose.BASELINE, Purpose.PRUNING)]
    if any(_rank(other) > _rank(trial) for other in others):
        return False
    comparable = [other for other in others if _rank(other) == _rank(trial)]
    return all(_least_speedup(trial) * (1.0 - SAME_SPEED) > _speedup(other) for other in comparable)


def explain_choice(chosen: Trial, trials: Sequence[Trial], races: Sequence[FinalRace] = ()) -> str:
    """Why this one, against the others; their last races first."""
    others = [trial for trial in trials if trial is not chosen and trial.purpose == Purpose.CANDIDATE]
    lines = [f"the search chose it: {describe(chosen)}", *map(str, races)]
    lines += [f"{trial.label}: {trial.why or _weaker(trial, chosen) or describe(trial)}" for trial in others]
    return "; ".join(lines)


def explain_failure(trials: Sequence[Trial], where: str) -> CompilerError:
    """The error of a device none of whose candidates passes, with every candidate's figures.

    A device whose every candidate failed to be built has the first one's error, of each of its targets.
    """
    judged = [trial for trial in trials if trial.gates and trial.made is not None and trial.purpose != Purpose.BASELINE]
    if not judged:
        return _unbuilt(trials, where)
    shown = [trial for trial in trials if trial.purpose != Purpose.BASELINE and trial.why]
    lines = [f"  - {trial.label}{_variant(trial)}: {trial.why}" for trial in shown]
    # of equal misses the earlier one: it was the more promising
    nearest = min(judged, key=lambda trial: (sum(map(_miss, trial.gates)), trial.number))
    missed = any(gate.passed is False for gate in nearest.gates)
    needed = limits_text(nearest_limits(nearest.gates)) if missed else "unjudged: deliver"
    return GateFailed(
        "no candidate passes the gates of this device:\n" + "\n".join(lines),
        where=where,
        remedy=f"Nearest: {nearest.label}{_variant(nearest)} would pass with `{needed}`.",
    )


def _unbuilt(trials: Sequence[Trial], where: str) -> CompilerError:
    """Why there is nothing that a gate could judge: each target's first error, or that there was nothing to build."""
    errors = {trial.target: trial.error for trial in reversed(trials) if trial.error}
    if errors:
        return combine(
            [errors[target] for target in dict.fromkeys(trial.target for trial in trials) if target in errors]
        )
    return UnsupportedModel(
        "the model is quantized already, and every precision of this device would convert it",
        where=where,
        remedy="Give the float model, or a precision of this device that leaves the model as it is.",
    )


def describe(trial: Trial) -> str:
    """A trial's figures in a line."""
    parts = []
    if trial.speed and trial.speed.speedup is not None:
        parts.append(f"{trial.speed.ratio_words} ({trial.speed.evidence})")
    if trial.footprint:
        parts.append(f"{trial.footprint.weights_bytes / (1 << 20):.1f} MiB of weights")
    if trial.pruned:
        parts.append(f"{trial.pruned:.0%} of the multiply-accumulates pruned")
    if trial.accuracy and trial.accuracy.drop:
        parts.append(f"{trial.accuracy.drop.drop_pct:.2f} points of {trial.accuracy.drop.metric} lost")
    return ", ".join(parts) or "nothing measured"


def _rank(trial: Trial) -> tuple[bool, int]:
    """How good the evidence for a trial is: first whether its accuracy was judged, then where its speed is from."""
    unjudged = any(gate.name == GateName.ACCURACY and gate.passed is None for gate in trial.gates)
    evidence = trial.speed.evidence if trial.speed else Evidence.NONE
    return not unjudged, _RANKS.index(evidence)


def _weaker(trial: Trial, chosen: Trial) -> str:
    """What evidence a passing trial lacks beside the chosen one; empty where it lacks none."""
    if not trial.passed or _rank(trial) >= _rank(chosen):
        return ""
    if _rank(trial)[0] < _rank(chosen)[0]:
        lack = "its accuracy was not judged, that of what is delivered was"
    else:
        lack = "its speed has weaker evidence than that of what is delivered"
    return f"{lack} ({describe(trial)})"


def _variant(trial: Trial) -> str:
    float_layers = f" with {len(trial.kept_float)} layers in float" if trial.kept_float else ""
    return float_layers + (f" pruned by {trial.pruned:.0%}" if trial.pruned else "")


def _speedup(trial: Trial) -> float:
    return trial.speed.speedup if trial.speed and trial.speed.speedup is not None else 1.0


def _least_speedup(trial: Trial) -> float:
    """The lower end of the speed-up's interval, where it has one."""
    least = trial.speed.low if trial.speed else None
    return _speedup(trial) if least is None else least


def _most_speedup(trial: Trial) -> float:
    """The upper end of the speed-up's interval, where it has one."""
    most = trial.speed.high if trial.speed else None
    return _speedup(trial) if most is None else most


def _is_disturbed(trial: Trial) -> bool:
    return trial.speed is not None and bool(trial.speed.disturbed)


def _is_timed(trial: Trial) -> bool:
    """Whether its speed is a time that was measured here, so that it can be raced again."""
    return trial.speed is not None and trial.speed.evidence == Evidence.HOST and trial.speed.unit == SpeedUnit.MS


def _bytes(trial: Trial) -> int:
    return trial.footprint.weights_bytes if trial.footprint else 0


def _miss(gate: Gate) -> float:
    """How far a gate was missed, against its limit."""
    if gate.passed is not False or gate.value is None:
        return 0.0
    return abs(gate.value - gate.limit) / max(1.0, abs(gate.limit))
