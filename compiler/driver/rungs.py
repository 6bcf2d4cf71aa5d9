"""The ladder of a device: the trials that a server may choose among under load, delivered beside the chosen one.

Of the trials that passed all gates, and of those that only the stated `degraded:` limit lets pass, stay those that no
other beats in both accuracy and speed. Each is a whole artifact in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import Evidence
from compiler.artifact.manifest import MANIFEST
from compiler.artifact.schema import RUNGS, Gate, GateName, LadderRung, Purpose, ServiceTime
from compiler.driver.measure.service import measure_service
from compiler.driver.search.certify import certify_others
from compiler.driver.search.search import SearchResult
from compiler.driver.search.trial import Trial
from compiler.driver.stages.context import BuildContext
from compiler.fleet import Serve
from compiler.store import file_digest

SAME_SPEED = 0.97
"""A rung takes less than this part of the time of the one above it: less gains nothing that can be measured."""


@dataclass(frozen=True)
class Candidate:
    """A trial that may be a rung.

    Args:
        trial: The trial.
        service: What its runs take.
        evidence: Where that was measured.
        is_degraded: Whether only the `degraded:` limit lets it pass.
    """

    trial: Trial
    service: tuple[ServiceTime, ...]
    evidence: Evidence
    is_degraded: bool

    @property
    def item_cost(self) -> float:
        """Milliseconds of one item at the best batch size; where nothing was timed what the search compared: the
        instructions of one inference under an emulator, or a roofline."""
        speed = self.trial.speed
        untimed = speed.value if speed and speed.value is not None else 0.0
        return min((time.p95_ms / time.items for time in self.service), default=untimed)


def choose_rungs(context: BuildContext, serve: Serve, result: SearchResult) -> tuple[list[Candidate], dict[str, str]]:
    """The trials to serve with, the most accurate first, and why others that passed are not among them."""
    others, left_out = _allowed(context, serve, result)
    chosen = [(result.chosen, False)] if result.chosen else []
    candidates = [
        Candidate(trial, *measure_service(context.through(trial.made.plan), trial.made), is_degraded)
        for trial, is_degraded in (*chosen, *others)
        if trial.made
    ]
    ranked = sorted(candidates, key=lambda one: (-accuracy_ratio(one.trial), one.item_cost))
    rungs: list[Candidate] = []
    for one in ranked:
        above = rungs[-1] if rungs else None
        if above is None or one.item_cost < above.item_cost * SAME_SPEED:
            rungs.append(one)
        elif one.trial is result.chosen:  # what is delivered is served, whatever else is
            rungs[-1:] = [one]
            left_out[trial_name(above.trial)] = f"{trial_name(one.trial)} is delivered, and about as fast"
        else:
            left_out[trial_name(one.trial)] = f"{trial_name(above.trial)} is at least as accurate, and about as fast"
    return rungs, left_out


def _allowed(
    context: BuildContext, serve: Serve, result: SearchResult
) -> tuple[list[tuple[Trial, bool]], dict[str, str]]:
    """Trials other than the chosen one that may be delivered, each with whether only as degraded."""
    built = [
        trial
        for trial in result.trials
        if trial.made and not trial.error and trial.purpose != Purpose.BASELINE and trial is not result.chosen
    ]
    passed = [trial for trial in built if trial.passed]
    certified = certify_others(context, passed, result.trials)
    failed = {trial_name(trial): trial.why for trial in certified if not trial.passed}
    degraded = [trial for trial in (*certified, *built) if not trial.passed and _holds_degraded(trial, serve)]
    names = {trial_name(trial) for trial in degraded}
    unique = {trial.number: trial for trial in degraded}.values()
    allowed = [(trial, False) for trial in certified if trial.passed] + [(trial, True) for trial in unique]
    return allowed, {name: why for name, why in failed.items() if name not in names}


def _holds_degraded(trial: Trial, serve: Serve) -> bool:
    """Whether accuracy alone keeps it out, and is inside the stated limit for degraded service."""
    limit = serve.degraded_drop_pct
    refusing = [gate for gate in trial.gates if gate.refuses]
    return limit is not None and bool(refusing) and all(_is_within(gate, limit) for gate in refusing)


def _is_within(gate: Gate, limit: float) -> bool:
    return gate.name == GateName.ACCURACY and gate.value is not None and gate.value <= limit


def trial_name(trial: Trial) -> str:
    """A trial as answers and folders call it, with its target where the device has several."""
    pruned = f"-pruned-{round(100 * trial.pruned)}" if trial.pruned else ""
    return f"{trial.label.replace(' ', '-')}{pruned}"


def accuracy_ratio(trial: Trial) -> float:
    """The trial's score over the float model's, on data that did not choose it if there are any; 1 unjudged."""
    drop = trial.accuracy.drop if trial.accuracy else None
    if drop is None or not drop.reference.value_pct:
        return 1.0
    lost = trial.certified.drop_pct if trial.certified else drop.drop_pct
    return 1.0 - lost / drop.reference.value_pct


def name_rungs(rungs: Sequence[Candidate]) -> list[str]:
    """A name for each; the trial's number tells those of one precision apart."""
    names = [trial_name(rung.trial) for rung in rungs]
    pairs = zip(names, (rung.trial.number for rung in rungs), strict=True)
    return [f"{name}-{number}" if names.count(name) > 1 else name for name, number in pairs]


def describe_rung(rung: Candidate, name: str, folder: Path | None) -> LadderRung:
    """A rung as the device's manifest has it; `folder` is where it was written, None for the delivered build."""
    trial = rung.trial
    drop = trial.certified or (trial.accuracy.drop if trial.accuracy else None)
    return LadderRung(
        name=name,
        trial=trial.number,
        folder=f"{RUNGS}/{name}" if folder else "",
        manifest_sha256=file_digest(folder / MANIFEST) if folder else "",
        service=rung.service,
        evidence=rung.evidence,
        accuracy_ratio=accuracy_ratio(trial),
        drop_pct=drop.drop_pct if drop else None,
        low_pct=drop.low_pct if drop else None,
        high_pct=drop.high_pct if drop else None,
        is_certified=trial.certified is not None,
        memory_bytes=trial.footprint.run_bytes if trial.footprint else None,
        is_degraded=rung.is_degraded,
    )
