"""The loop of tuning: the choices of each kernel, best predicted first, measured one by one and remembered at once.

for each kernel, most work first:
    proposals of other devices → choices by prediction;  those in the log are not measured again
    stop: every choice tried · N trials · N trials without a better one · this kernel's share of the time is used
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from compiler.artifact import Evidence
from compiler.errors import CompilerError, StorageError, TargetUnavailable
from compiler.store import canonical_json
from compiler.tune.log import TuningLog
from compiler.tune.lookup import best_of, proposals
from compiler.tune.record import Choice, Measurement, Tunable, TuningKey, TuningRecord, trial_id

GAIN = 0.01
"""A trial this much better than the best before it is progress; less is noise."""

Measure = Callable[[Tunable, Choice], Measurement]

log = logging.getLogger("fleetc.tune")


@dataclass(frozen=True)
class Budget:
    """When tuning stops.

    Args:
        trials: Trials of one kernel at most, those in the log among them.
        plateau: Trials of one kernel in a row that are no better than the best before them.
        seconds: Wall time of all kernels together; None for no limit.
        retry: Whether trials that the log has as failed are run again.
    """

    trials: int = 64
    plateau: int = 12
    seconds: float | None = None
    retry: bool = False


@dataclass(frozen=True)
class Tuned:
    """What came of one kernel.

    Args:
        kernel: The kernel.
        best: Its fastest record; None if every trial failed, or none was run.
        default: The record of its first choice, which is what is built without tuning; None if that failed.
        tried: Trials in the log, old and new.
        new: Those of them that were run now.
        failed: Those of them that gave no figure.
        stopped: Why no more were run.
    """

    kernel: Tunable
    best: TuningRecord | None
    default: TuningRecord | None
    tried: int
    new: int
    failed: int
    stopped: str


def tune(
    kernels: Sequence[Tunable],
    keys: Mapping[str, TuningKey],
    measure: Measure,
    evidence: Evidence,
    *,
    log_: TuningLog,
    budget: Budget,
) -> tuple[Tuned, ...]:
    """Measures choices of every kernel until the budget is used.

    Args:
        kernels: The kernels of a model, each workload once.
        keys: Workload → the key its records are kept under.
        measure: Runs one trial. What it raises is the trial's result and is remembered, except TargetUnavailable and
            StorageError: those end the run, and what was measured stays.
        evidence: What `measure` gives.
        log_: Where records are kept.
        budget: When to stop.

    Raises:
        TargetUnavailable: What measures is gone: the tracker, the board, the emulator.
        StorageError: The log cannot be written.
    """
    # most work first: what is left when the time is used up then matters least
    ordered = sorted(kernels, key=lambda kernel: -kernel.work)
    clock = _Clock(budget, sum(kernel.work for kernel in ordered), len(ordered))
    done = {}
    for index, kernel in enumerate(ordered):
        search = _Search(kernel, keys[kernel.workload], measure, evidence, log_, budget, clock)
        done[kernel.workload] = search.run(f"{index + 1} of {len(ordered)}")
        clock.finish(kernel)
    return tuple(done[kernel.workload] for kernel in kernels)


class _Clock:
    """Wall time left for one kernel, and for all."""

    def __init__(self, budget: Budget, work: float, kernels: int) -> None:
        self._end = None if budget.seconds is None else time.monotonic() + budget.seconds
        self._work, self._kernels, self._spent = work, kernels, [0.0, 0]
        self._started = time.monotonic()

    def deadline(self, kernel: Tunable) -> float:
        """When this kernel's trials must end: its share of the time left, by its work among those left."""
        if self._end is None:
            return float("inf")
        now = time.monotonic()
        # the last kernels may have a little more work than is left, by rounding
        return now + max(0.0, self._end - now) * min(1.0, kernel.work / self._work if self._work > 0 else 1.0)

    def finish(self, kernel: Tunable) -> None:
        self._work -= kernel.work
        self._kernels -= 1

    def measured(self, seconds: float) -> None:
        self._spent = [self._spent[0] + seconds, self._spent[1] + 1]

    def left(self, trials: int) -> str:
        """How long it will take at most, by the trials so far."""
        each = self._spent[0] / max(1, self._spent[1])
        longest = each * trials * max(1, self._kernels)
        seconds = longest if self._end is None else min(longest, self._end - time.monotonic())
        return f"at most {max(0.0, seconds):.0f} s left"


@dataclass
class _Search:
    """The trials of one kernel."""

    kernel: Tunable
    key: TuningKey
    measure: Measure
    evidence: Evidence
    log_: TuningLog
    budget: Budget
    clock: _Clock

    def run(self, place: str) -> Tuned:
        deadline, new, idle, best = self.clock.deadline(self.kernel), 0, 0, None
        order = _order(self.kernel, self.key, self.log_)[: self.budget.trials]
        stopped = f"all {len(order)} choices tried" if len(order) == len(self.kernel.choices) else "trials"
        for choice in order:
            if idle >= self.budget.plateau:
                stopped = f"no better one in {idle} trials"
                break
            # what the log knows costs no time, so it counts even after the deadline
            record = self._known(choice)
            if record is None:
                if time.monotonic() >= deadline:
                    stopped = "time"
                    break
                record, was_run = self._trial(choice)
                new += was_run
            is_better = not record.error and (best is None or record.median < best.median * (1.0 - GAIN))
            best, idle = (record, 0) if is_better else (best, idle + 1)
            log.info(
                "%s (%s): %s; best %s; %s", self.kernel.name, place, record, best or "none", self.clock.left(len(order))
            )
        return self._tuned(new, stopped)

    def _known(self, choice: Choice) -> TuningRecord | None:
        wanted = trial_id(self.key, choice, self.evidence)
        records = [record for record in self.log_.of(self.key.device) if record.trial == wanted]
        good = [record for record in records if not record.error]
        return next(iter(good), None) if self.budget.retry else next(iter(good or records), None)

    def _trial(self, choice: Choice) -> tuple[TuningRecord, bool]:
        """Measures one choice, or takes what another tuner has just measured; one at a time per type of device."""
        with self.log_.lock(f"measure-{self.key.device.digest[:12]}"):
            # another tuner may have measured the same while this one waited for the lock
            known = self._known(choice)
            if known is not None:
                return known, False
            started = time.monotonic()
            record = self._measured(choice)
            self.clock.measured(time.monotonic() - started)
            self.log_.append(record)
            return record, True

    def _measured(self, choice: Choice) -> TuningRecord:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            measurement = self.measure(self.kernel, choice)
        # no record of these: they say nothing of the choice, which must be tried again
        except (TargetUnavailable, StorageError):
            raise
        # any other failure is remembered, so that no later run spends its time on it
        except CompilerError as error:
            return TuningRecord(self.key, self.kernel.name, choice, self.evidence, date=date, error=error.what)
        if measurement.evidence != self.evidence:
            raise ValueError(f"a {measurement.evidence} figure where {self.evidence} was asked for")
        return TuningRecord(
            self.key,
            self.kernel.name,
            choice,
            self.evidence,
            median=measurement.median,
            spread=measurement.spread,
            runs=len(measurement.values),
            date=date,
        )

    def _tuned(self, new: int, stopped: str) -> Tuned:
        wanted = {trial_id(self.key, choice, self.evidence): choice for choice in self.kernel.choices}
        every = [record for record in self.log_.of(self.key.device) if record.trial in wanted]
        # the good ones last: where a failed trial was repeated with success, that one stays
        latest = {record.trial: record for record in sorted(every, key=lambda record: not record.error)}
        records = list(latest.values())
        good = [record for record in records if not record.error]
        first = trial_id(self.key, self.kernel.default, self.evidence)
        return Tuned(
            self.kernel,
            best_of(good),
            next((record for record in good if record.trial == first), None),
            tried=len(records),
            new=new,
            failed=len(records) - len(good),
            stopped=stopped,
        )


def _order(kernel: Tunable, key: TuningKey, log_: TuningLog) -> list[Choice]:
    """The default first, as the baseline; then what was best elsewhere; then the rest as predicted."""
    known = {canonical_json(choice): choice for choice in kernel.choices}
    names = [
        canonical_json(kernel.default),
        *(canonical_json(proposal.choice) for proposal in proposals(log_.records(), key)),
        *known,
    ]
    return [known[name] for name in dict.fromkeys(names) if name in known]
