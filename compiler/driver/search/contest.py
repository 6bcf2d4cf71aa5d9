"""The contest of a device's targets: their first builds are raced, which tells whose candidates are worth a trial.

first build of the first target that can make one: the baseline, in float32 where there are gates
  ↓
first build of each other target, raced against it for a few seconds, neither verified nor judged; at the optimal
sizes alone, where a target compiles each size for itself
  ↓
with gates:     a target whose best precision cannot be expected near another's is tried last; a candidate is left out
                where what passes is measured to be faster than the most that can be expected of it
without gates:  the fastest is verified and delivered
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from compiler.artifact.schema import Competitor, Speed, Standing
from compiler.driver.measure.speed import race_targets, speed_ends, threads_here
from compiler.driver.search.select import SAME_SPEED, choose_trial, describe
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate, build
from compiler.driver.stages.context import BuildContext, with_plan
from compiler.driver.stages.quantize import Variant
from compiler.errors import CompilerError, StorageError, TargetUnavailable
from compiler.plan import Plan, at_optimal_sizes, settle
from compiler.plan.contest import CLOSE
from compiler.store import StageName
from compiler.target.capability import PrecisionRule


@dataclass(frozen=True, eq=False)
class Entrant:
    """One target in the search of a device.

    Args:
        context: The device through it.
        race: Its first build against the baseline; None for the baseline itself, and where nothing was raced.
        against: The baseline's target, where it was raced.
        is_baseline: Whether it is the baseline.
        standing: How it came out by its first build alone: `slower` where its candidates are tried last; None where
            they are tried as they come.
        why: Why.
        threads: How many its build had in the race.
    """

    context: BuildContext
    race: Speed | None = None
    against: str = ""
    is_baseline: bool = False
    standing: Standing | None = None
    why: str = ""
    threads: int = 1

    @property
    def name(self) -> str:
        """The target; empty where the device has one."""
        return self.context.job.plan.competes_as

    @property
    def is_possible(self) -> bool:
        """Whether it can build anything."""
        return self.standing != Standing.FAILED

    @property
    def speedup(self) -> float:
        """How much faster its first build is than the baseline: 1 where nobody knows."""
        return self.race.speedup if self.race and self.race.speedup else 1.0

    @property
    def low(self) -> float:
        """Lower end of the interval of its speed-up."""
        return self.speedup if self.race is None or self.race.low is None else self.race.low

    @property
    def high(self) -> float:
        """Upper end of the interval of its speed-up."""
        return self.speedup if self.race is None or self.race.high is None else self.race.high

    @property
    def most(self) -> float:
        """The most that its speed-up may be, whatever disturbed its race."""
        return self.high if self.race is None else speed_ends(self.race, threads=self.threads)[1]

    @property
    def least(self) -> float:
        """The least that its speed-up may be, whatever disturbed its race."""
        return self.low if self.race is None else speed_ends(self.race, threads=self.threads)[0]

    @property
    def race_words(self) -> str:
        """What came of the race, in words; empty where it was not raced."""
        if self.race is None:
            return ""
        doubt = ", disturbed" if self.race.disturbed else ""
        note = f"; {self.race.note}" if self.race.note else ""
        return f"{self.race.ratio_figure} × the speed of {self.against} ({self.race.evidence}{doubt}{note})"


def enter_targets(
    context: BuildContext,
    rule_of: Callable[[Plan], PrecisionRule | None],
    try_first: Callable[[BuildContext, PrecisionRule, int], Trial],
) -> tuple[tuple[Entrant, ...], tuple[Trial, ...]]:
    """Every target of a device with its first build raced, and the trials of first builds up to the baseline.

    Args:
        context: The device.
        rule_of: The precision of a target's first build; None where it has none.
        try_first: Makes and judges it, until one is the baseline.

    Raises:
        CompilerError: Whatever `try_first` lets through, and a full disk.
    """
    entrants: list[Entrant] = []
    trials: list[Trial] = []
    baseline: BuiltCandidate | None = None
    for own in context.by_target:
        rule = rule_of(own.job.plan)
        if rule is None:
            entrants.append(Entrant(own))
        elif baseline is None:
            trials.append(try_first(own, rule, len(trials) + 1))
            baseline = trials[-1].made
            failed = Entrant(own, standing=Standing.FAILED, why=trials[-1].why)
            entrants.append(Entrant(own, is_baseline=True) if baseline else failed)
        else:
            entrants.append(_race(own, rule, baseline))
    return tuple(entrants), tuple(trials)


def _race(own: BuildContext, rule: PrecisionRule, baseline: BuiltCandidate) -> Entrant:
    name, other = own.job.plan.target, baseline.plan.target
    plan = raced_plan(own, settle(own.job.plan, rule, "raced against another target"))
    own = with_plan(own, replace(own.job.plan, baseline=None))  # all trials are measured against that one
    try:
        made = build(own, plan, Variant())
    except StorageError:
        raise
    except CompilerError as error:
        return _failed(own, error)
    try:
        with own.clock.timed(StageName.SPEED):
            entrant = Entrant(own, race_targets(own, made, baseline), other, threads=threads_here(made))
    except TargetUnavailable as error:
        own.clock.note(f"{name} is not raced against {other}: {error.what}")
        return Entrant(own, standing=Standing.NOT_RACED, why=f"not raced against {other}: {error.what}")
    except StorageError:
        raise
    except CompilerError as error:
        return _failed(own, error)
    own.clock.note(f"{name} in {rule.name}: {entrant.race_words}")
    return entrant


def raced_plan(own: BuildContext, plan: Plan) -> Plan:
    """The plan of a build that is only raced: where each size has code of its own, that of the raced one is enough.

    Args:
        own: The device through the target.
        plan: As a candidate would be built.
    """
    has_fixed_sizes = bool(own.job.target.capability(own.job.profile).fixed_sizes)
    return at_optimal_sizes(plan) if has_fixed_sizes and own.job.device.generation is None else plan


def _failed(own: BuildContext, error: CompilerError) -> Entrant:
    own.clock.note(f"{own.job.plan.target} cannot compete: {error.brief}")
    return Entrant(own, standing=Standing.FAILED, why=error.brief)


def sort_out(entrants: Sequence[Entrant], expected: Callable[[BuildContext], float]) -> tuple[Entrant, ...]:
    """The targets, those marked whose candidates are tried last: little is to be expected of them.

    Args:
        entrants: All, raced.
        expected: How much faster than its float32 build the most promising candidate of a target is expected to be.
    """
    raced = [entrant for entrant in entrants if entrant.standing is None and (entrant.race or entrant.is_baseline)]
    gains = {entrant: expected(entrant.context) for entrant in raced}
    # of intervals the ends that speak for the slower one: what is sorted out should be clearly slower
    least = {entrant: gains[entrant] * entrant.least for entrant in raced}
    best = max(raced, key=lambda entrant: least[entrant], default=None)
    if best is None:
        return tuple(entrants)
    return tuple(_sorted_out(entrant, best, gains, least[best]) for entrant in entrants)


def _sorted_out(entrant: Entrant, best: Entrant, gains: Mapping[Entrant, float], least: float) -> Entrant:
    if entrant not in gains or gains[entrant] * entrant.most >= least * (1.0 - CLOSE):
        return entrant
    own, others = gains[entrant], gains[best]
    why = (
        f"{_first_build_words(entrant, best)}, and its best precision is expected to be {own:g} times as fast as that, "
        f"where that of {best.name} is {others:g} times as fast as its own"
    )
    return replace(entrant, standing=Standing.SLOWER, why=why)


def _first_build_words(entrant: Entrant, best: Entrant) -> str:
    """Its speed in float32 against the best target's: both were measured against the baseline, which may be either."""
    ratio = entrant.speedup / best.speedup
    race = entrant.race or best.race
    return f"in float32 it has {ratio:.2f} × the speed of {best.name} ({race.evidence if race else 'none'})"


def fastest_first(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Those that can be built, in the order in which they may be delivered where nothing but speed is judged.

    The clearly faster ones than the baseline stand before it, the fastest first; the others behind it.
    """
    possible = [entrant for entrant in entrants if entrant.is_possible]
    faster = [entrant for entrant in possible if entrant.low * (1.0 - SAME_SPEED) > 1.0]
    faster.sort(key=lambda entrant: -entrant.low)
    return [*faster, *(entrant for entrant in possible if entrant not in faster)]


def standings(entrants: Sequence[Entrant], trials: Sequence[Trial], chosen: Trial | None) -> tuple[Competitor, ...]:
    """How every target of a device came out, those among them that could not even be planned for.

    Args:
        entrants: Those that were planned for.
        trials: All trials.
        chosen: What is delivered; None if nothing is.
    """
    by_name = {entrant.name: entrant for entrant in entrants}
    planned = entrants[0].context.job.plan.targets if entrants else ()
    return tuple(
        _standing(by_name[target.target], trials, chosen)
        if target.target in by_name
        else Competitor(target.target, Standing.FAILED, target.left_out)
        for target in planned
    )


def _standing(entrant: Entrant, trials: Sequence[Trial], chosen: Trial | None) -> Competitor:
    own = [trial for trial in trials if trial.target == entrant.name]
    is_chosen = chosen is not None and chosen.target == entrant.name
    best = chosen if is_chosen else choose_trial(own)
    first = "the others are measured against its first build" if entrant.is_baseline else entrant.race_words
    reached = _reached(own, best, is_chosen=is_chosen) if entrant.is_possible else ""
    why = "; ".join(filter(None, (first, entrant.why, reached)))
    was_tried = any(not trial.left_out for trial in own)
    lost = Standing.BEATEN if entrant.standing is None or (was_tried and entrant.is_possible) else entrant.standing
    standing = Standing.WON if is_chosen else lost
    return Competitor(entrant.name, standing, why, entrant.race, best.number if best else None)


def _reached(own: Sequence[Trial], best: Trial | None, *, is_chosen: bool) -> str:
    """What the best of a target's trials came to, or what its first one failed at; without gates no figures."""
    if best is not None and best.gates:
        return f"{best.precision}: {describe(best)}"
    if best is not None:
        return f"delivered in {best.precision}" if is_chosen else ""
    return next((f"{trial.precision}: {trial.why}" for trial in own if trial.why and not trial.left_out), "")


def explain_target(contest: Sequence[Competitor]) -> str:
    """Why the target that is delivered, against the others."""
    ranked = sorted(contest, key=lambda competitor: competitor.standing != Standing.WON)
    return "; ".join(map(str, ranked))
