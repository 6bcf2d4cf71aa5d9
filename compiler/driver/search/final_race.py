"""The end of a search: builds that may all be the best are raced against each other, two at a time.

    contenders, in the order of the device's targets → the first two are raced → the winner against the third → …

Speeds against float32 leave open which build is the fastest where their intervals meet, or where other work disturbed
the races. A race of the two builds themselves tells them apart: by the clock, and by processor time on a busy machine.
Whatever it leaves open is settled by size, which no load changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compiler.artifact.schema import FinalRace, Settled, Speed
from compiler.driver.measure.speed import race_best
from compiler.driver.search.select import SAME_SPEED, choose_trial, contenders
from compiler.driver.search.trial import Trial
from compiler.driver.stages.context import BuildContext
from compiler.errors import CompilerError, StorageError
from compiler.store import StageName


def choose_raced(context: BuildContext, trials: Sequence[Trial]) -> tuple[Trial | None, tuple[FinalRace, ...]]:
    """The trial to deliver, None if there is none; and the races that settled it.

    Args:
        context: The device.
        trials: All trials.

    Raises:
        StorageError: The cache's disk is full.
    """
    targets = [own.job.plan.competes_as for own in context.by_target]
    # not by their speed: a load that changes it must not change who meets whom
    close = sorted(contenders(trials), key=lambda trial: (targets.index(trial.target), trial.number))
    if not close:
        return choose_trial(trials), ()
    champion, races = close[0], []
    for challenger in close[1:]:
        speed, why = _race(context, challenger, champion)
        races.append(settle_race(challenger, champion, speed, why=why))
        champion = challenger if races[-1].winner == challenger.number else champion
        context.clock.note(str(races[-1]))
    return champion, tuple(races)


def settle_race(challenger: Trial, champion: Trial, speed: Speed | None, *, why: str = "") -> FinalRace:
    """Which of two trials goes on.

    Args:
        challenger: The one.
        champion: The other, which goes on where all else is equal.
        speed: The challenger's speed against the champion's; None where they could not be raced.
        why: Why not.
    """
    settled = _settled(speed)
    if settled == Settled.FASTER:
        is_won = speed is not None and speed.speedup is not None and speed.speedup > 1.0
    else:
        is_won = _bytes(challenger) < _bytes(champion)
    winner, loser = (challenger, champion) if is_won else (champion, challenger)
    of_winner = speed if is_won or speed is None else _inverse(speed)
    return FinalRace(winner.number, loser.number, (winner.label, loser.label), settled, of_winner, why)


def _settled(speed: Speed | None) -> Settled:
    """What an interval says of two speeds: of those within `SAME_SPEED` of each other none counts as faster."""
    if speed is None or speed.low is None or speed.high is None:
        return Settled.OPEN
    least, most = 1.0 - SAME_SPEED, 1.0 / (1.0 - SAME_SPEED)
    if speed.low > most or speed.high < least:
        return Settled.FASTER
    return Settled.SMALLER if least <= speed.low and speed.high <= most else Settled.OPEN


def _race(context: BuildContext, challenger: Trial, champion: Trial) -> tuple[Speed | None, str]:
    """The challenger's speed against the champion's, or why there is none."""
    made, other = challenger.made, champion.made
    if made is None or other is None or made.built.entry.digest == other.built.entry.digest:
        return None, "both are the same artifact"
    is_busy = any(trial.speed is not None and trial.speed.disturbed for trial in (challenger, champion))
    try:
        with context.clock.timed(StageName.SPEED):
            return race_best(context.through(made.plan), made, other, is_busy=is_busy), ""
    except StorageError:
        raise
    except CompilerError as error:  # both are built, verified and judged: that they cannot be raced stops no delivery
        return None, f"not raced: {error.what}"


def _inverse(speed: Speed) -> Speed:
    """The same race seen from the other build."""
    low, high = (None if end is None else 1.0 / end for end in (speed.high, speed.low))
    return replace(
        speed,
        speedup=None if speed.speedup is None else 1.0 / speed.speedup,
        value=speed.original,
        original=speed.value,
        low=low,
        high=high,
        value_high=None,
    )


def _bytes(trial: Trial) -> int:
    return trial.footprint.weights_bytes if trial.footprint else 0
