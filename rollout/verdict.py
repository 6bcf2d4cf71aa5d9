"""One word on a candidate, and why: may be asked for at any time of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from compiler.artifact.adapter import Number
from compiler.errors import DataError
from rollout.metric import Metric, Role, State
from rollout.sample_ratio import is_mismatched

RAMP = (0.01, 0.05, 0.10, 0.25, 0.50)
"""Shares of traffic that a candidate gets one after another."""

FEWEST_REQUESTS = 100
"""Requests before a candidate may ship or go up the ramp; a rollback waits for none."""


class Decision(StrEnum):
    """What to do with a candidate."""

    SHIP = "ship"
    ROLL_BACK = "roll back"
    KEEP_GOING = "keep going"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class Rules:
    """What is asked of an experiment before it begins.

    Args:
        ramp: Shares of traffic, rising; empty where the candidate answers nobody (shadow, replay).
        least_s: Seconds that every step of the ramp lasts at least.
        least_requests: Requests that the candidate gets at least before it may go on.
    """

    ramp: tuple[float, ...] = RAMP
    least_s: float = 0.0
    least_requests: int = FEWEST_REQUESTS

    def __post_init__(self) -> None:
        if list(self.ramp) != sorted(set(self.ramp)) or any(not 0 < share < 1 for share in self.ramp):
            raise DataError(f"the ramp is {list(self.ramp)}", remedy="give rising shares above 0 and below 1")


@dataclass(frozen=True)
class Traffic:
    """Who was asked so far.

    Args:
        current: Requests that the build in use answered.
        candidate: Requests that the candidate answered.
        seconds: How long this step has lasted.
        step: Position in the ramp.
        is_same_build: Both artifacts have one digest.
        keys: Request keys that the build in use and the candidate got: by them traffic is divided, since requests
            of one key go together. None where every request is one of its own.
    """

    current: int
    candidate: int
    seconds: float = 0.0
    step: int = 0
    is_same_build: bool = False
    keys: tuple[int, int] | None = None

    @property
    def divided(self) -> tuple[int, int]:
        """What was divided between the build in use and the candidate."""
        return (self.current, self.candidate) if self.keys is None else self.keys


@dataclass(frozen=True)
class Verdict:
    """What to do with a candidate now.

    Args:
        decision: The word.
        reasons: Why, one sentence each.
        metrics: All figures it was drawn from.
        more: About how many more requests decide; None where nobody can say or nothing is open.
        next_share: The candidate's share of traffic from now on; None where it stays.
        traffic: Who was asked so far.
        least_s: Seconds that this step lasts at least.
    """

    decision: Decision
    reasons: tuple[str, ...]
    metrics: tuple[Metric, ...]
    more: int | None
    next_share: Number
    traffic: Traffic
    least_s: float


def judge(metrics: Sequence[Metric], traffic: Traffic, rules: Rules) -> Verdict:
    """The verdict of this moment: a guardrail's breach first, then what makes the figures worthless, then what is open.

    Args:
        metrics: All metrics now.
        traffic: Who was asked so far.
        rules: What was asked for before the experiment began.
    """
    breaches = _named(metrics, Role.GUARDRAIL, State.BREACHED)
    faults = _faults(metrics, traffic, rules)
    if breaches:
        reasons = [f"{metric.name} is beyond its limit" for metric in breaches]
        return _verdict(Decision.ROLL_BACK, [*reasons, *faults], metrics, traffic, rules, next_share=0.0)
    if faults:
        return _verdict(Decision.UNHEALTHY, faults, metrics, traffic, rules)
    waits = _waits(metrics, traffic, rules)
    if waits:
        more = _more(metrics, traffic, rules)
        return _verdict(Decision.KEEP_GOING, waits, metrics, traffic, rules, more=more)
    return _advance(metrics, traffic, rules)


def _advance(metrics: Sequence[Metric], traffic: Traffic, rules: Rules) -> Verdict:
    if traffic.step + 1 < len(rules.ramp):
        share = rules.ramp[traffic.step + 1]
        reasons = [f"every limit holds at this step; the next is {share:.0%} of traffic"]
        return _verdict(Decision.KEEP_GOING, reasons, metrics, traffic, rules, next_share=share)
    return _verdict(Decision.SHIP, ["every limit holds"], metrics, traffic, rules, next_share=1.0)


def _faults(metrics: Sequence[Metric], traffic: Traffic, rules: Rules) -> list[str]:
    """What makes the figures worthless."""
    faults = [f"{metric.name} is NaN" for metric in metrics if metric.state == State.UNKNOWN]
    if traffic.is_same_build:
        faults.append("the candidate is the current build: there is nothing to compare")
    if not traffic.candidate or not traffic.current:
        faults.append(f"no request reached the {'current build' if traffic.candidate else 'candidate'}")
    elif rules.ramp and traffic.step < len(rules.ramp):
        share = rules.ramp[traffic.step]
        if is_mismatched(traffic.divided, (1 - share, share)):
            seen = traffic.divided[1] / sum(traffic.divided)
            faults.append(
                f"the candidate got {seen:.2%} of traffic and not {share:.2%}: requests are not divided as asked"
            )
    if not any(metric.role == Role.GUARDRAIL for metric in metrics):
        faults.append("no guardrail was measured")
    return faults


def _waits(metrics: Sequence[Metric], traffic: Traffic, rules: Rules) -> list[str]:
    """What has to happen before the candidate may go on."""
    waits = [f"{metric.name} is beyond its limit and holds the ramp" for metric in _signals(metrics, State.BREACHED)]
    opened = [metric for metric in metrics if metric.role != Role.SHOWN and metric.state == State.OPEN]
    waits += [f"{metric.name} is not decided" for metric in opened]
    if traffic.candidate < rules.least_requests:
        waits.append(f"{traffic.candidate} of at least {rules.least_requests} requests")
    if traffic.seconds < rules.least_s:
        waits.append(f"{traffic.seconds:.0f} of at least {rules.least_s:.0f} s")
    return waits


def _more(metrics: Sequence[Metric], traffic: Traffic, rules: Rules) -> int | None:
    """Requests until all that is open is decided; None where one of them says nothing or a signal holds the ramp."""
    opened = [metric.more for metric in metrics if metric.role != Role.SHOWN and metric.state == State.OPEN]
    forecasts = [more for more in opened if more is not None]
    if len(forecasts) < len(opened) or _signals(metrics, State.BREACHED):
        return None
    return max([*forecasts, rules.least_requests - traffic.candidate]) if opened else None


def _signals(metrics: Sequence[Metric], state: State) -> list[Metric]:
    return _named(metrics, Role.SIGNAL, state)


def _named(metrics: Sequence[Metric], role: Role, state: State) -> list[Metric]:
    return [metric for metric in metrics if metric.role == role and metric.state == state]


def _verdict(
    decision: Decision,
    reasons: Sequence[str],
    metrics: Sequence[Metric],
    traffic: Traffic,
    rules: Rules,
    *,
    more: int | None = None,
    next_share: float | None = None,
) -> Verdict:
    return Verdict(decision, tuple(reasons), tuple(metrics), more, next_share, traffic, rules.least_s)
