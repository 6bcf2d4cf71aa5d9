"""The dispatcher: what waits goes to a worker that has its labels and a free slot; what is silent is given up.

It chooses the first of the queue that can start now, and nothing else: no fairness, no reservations. An attempt is
given up when its worker is gone or does not report for `SILENCE_S`; the device then waits for its next attempt.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from compiler.errors import StorageError, ToolchainFailed
from server.attempt import SILENCE_S, Call
from server.attempt_rows import Attempt, begin_attempt, give_up, running
from server.bell import Bell
from server.engine import BuildEngine, WorkerFacts
from server.jobs import Waiting, fail_waiting, queue, set_waiting_for
from server.tables import Database

TICK_S = 1.0
"""How often it looks without being rung for: for deadlines, and for workers that came or went."""

GONE_TICKS = 3
"""A worker that is not seen so often in a row is gone: one that is busy may miss a beat."""

log = logging.getLogger("fleetc.server")


@dataclass(frozen=True)
class Rules:
    """What bounds attempts.

    Args:
        most_losses: Attempts of a device that may be lost before it is.
        silence_s: How long an attempt may say nothing.
        quota: Attempts that a project may have at a time; 0 for no bound. What is above waits.
    """

    most_losses: int = 5
    silence_s: float = SILENCE_S
    quota: int = 0


@dataclass
class Dispatcher:
    """A thread that hands out attempts.

    Args:
        database: The tables.
        engine: Who carries them.
        rules: What bounds them.
        bell: Rung when there may be something to do, and by it when something has changed.
    """

    database: Database
    engine: BuildEngine
    rules: Rules
    bell: Bell
    _stop: threading.Event = field(default_factory=threading.Event)
    _absent: Counter[str] = field(default_factory=Counter)
    _silent_since: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Gives up what an earlier server left running, and begins to hand out."""
        self.give_up_all("the server was started again")
        self.engine.events(self._ended)
        self._thread = threading.Thread(target=self._run, name="fleetc-dispatcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hands out nothing more."""
        self._stop.set()
        self.bell.ring()
        if self._thread is not None:
            self._thread.join(10)

    def give_up_all(self, why: str) -> None:
        """Every attempt that runs is given up, and its device waits for another."""
        with self.database.reading() as connection:
            rows = running(connection)
        for row in rows:
            # it is not the attempt's fault, so it does not count as a loss
            give_up(self.database, _attempt(row), why, most_losses=1 << 30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except StorageError as error:  # the disk is full: nothing can begin, and it is tried again
                log.error("%s", error)
            self.bell.wait_for_ring(TICK_S)

    def look(self) -> None:
        """One look at what runs and what waits."""
        workers = list(self.engine.capacity())
        self._give_up_silent({worker.name for worker in workers})
        with self.database.reading() as connection:
            busy = Counter(row.worker for row in running(connection))
            waiting = queue(connection)
            shares = _shares(connection) if self.rules.quota else Counter[str]()
        usable = [worker for worker in workers if worker.version == version("fleetc") and self._is_heard(worker)]
        for device in waiting:
            if self._stop.is_set():
                return
            if _is_late(device):
                fail_waiting(self.database, device, _late(device))
                self.bell.ring_listeners()
                continue
            self._explain(device, usable)
            worker = _choose(device, usable, busy)
            if worker is None or (self.rules.quota and shares[device.project] >= self.rules.quota):
                continue
            if self._begin(device, worker):
                busy[worker.name] += 1
                shares[device.project] += 1

    def _is_heard(self, worker: WorkerFacts) -> bool:
        """Whether a worker was heard of since it lost an attempt by its silence: it would lose the next one, too."""
        return worker.seen > self._silent_since[worker.name]

    def _begin(self, device: Waiting, worker: WorkerFacts) -> bool:
        begun = begin_attempt(self.database, device, worker.name)
        if begun is None:
            return False
        attempt, token = begun
        call = Call(attempt.id, token)
        self.engine.submit(worker, attempt.id, json.dumps(asdict(call)))
        log.info("job %s, %s: attempt %d begins on %s", attempt.job, attempt.device, attempt.number, worker.name)
        self.bell.ring_listeners()
        return True

    def _explain(self, device: Waiting, workers: Sequence[WorkerFacts]) -> None:
        """Says at once where no worker could do it, however long one waits."""
        missing = missing_labels(device.labels, workers, not_on=device.not_on)
        if missing != device.waiting_for:
            set_waiting_for(self.database, device, missing)
            self.bell.ring_listeners()

    def _give_up_silent(self, present: set[str]) -> None:
        with self.database.reading() as connection:
            rows = running(connection)
        for row in rows:
            self._absent[row.worker] = 0 if row.worker in present else self._absent[row.worker] + 1
        for row in rows:
            silent = time.time() - row.heard > self.rules.silence_s
            if silent:
                self._silent_since[row.worker] = time.time()
            if silent or self._absent[row.worker] >= GONE_TICKS:
                self._give_up(_attempt(row), "it was not heard of any more" if silent else "its worker is gone")

    def _give_up(self, attempt: Attempt, why: str) -> None:
        log.warning("job %s, %s: attempt %d is given up: %s", attempt.job, attempt.device, attempt.number, why)
        self.engine.stop(attempt.id)
        give_up(self.database, attempt, why, most_losses=self.rules.most_losses)
        self.bell.ring()

    def _ended(self, identity: str, why: str) -> None:
        """The engine no longer runs an attempt; where it has not reported its end, it is lost."""
        with self.database.reading() as connection:
            rows = [row for row in running(connection) if row.id == identity]
        for row in rows:
            self._give_up(_attempt(row), why or "it ended without a word")
        self.bell.ring()


def missing_labels(labels: Iterable[str], workers: Sequence[WorkerFacts], *, not_on: str = "") -> tuple[str, ...]:
    """Labels that keep a device waiting: those that no worker has, or all where no worker has them together.

    Where the one worker that has them must not do it, that is said as a label of its own.
    """
    needed = set(labels)
    able = {worker.name for worker in workers if needed <= worker.labels}
    if able:
        return () if able - {not_on} else (f"other-than:{not_on}",)
    offered = {label for worker in workers for label in worker.labels}
    return tuple(sorted(needed - offered or needed)) or ("worker",)


def _choose(device: Waiting, workers: Sequence[WorkerFacts], busy: Counter[str]) -> WorkerFacts | None:
    """The worker with most free slots among those that can do it."""
    free = [
        (worker.slots - busy[worker.name], worker.name, worker)
        for worker in workers
        if set(device.labels) <= worker.labels and worker.name != device.not_on and busy[worker.name] < worker.slots
    ]
    return max(free, key=lambda one: one[:2])[2] if free else None


def _is_late(device: Waiting) -> bool:
    limit = device.deadline_queued_s
    return limit is not None and device.attempt == 0 and time.time() - device.created > limit


def _late(device: Waiting) -> dict[str, Any]:
    missing = f"; no worker has {', '.join(device.waiting_for)}" if device.waiting_for else ""
    return ToolchainFailed(
        f"no attempt began within {device.deadline_queued_s:g} s{missing}",
        where=device.name,
        remedy="Allow more with --queue-deadline, or start a worker (`fleetc worker`).",
    ).to_dict()


def _shares(connection: Any) -> Counter[str]:
    """Attempts that run, by project."""
    from sqlalchemy import select

    from server.attempt_rows import RUNNING
    from server.tables import attempts, jobs

    rows = connection.execute(
        select(jobs.c.project).join(attempts, attempts.c.job == jobs.c.id).where(attempts.c.state == RUNNING)
    )
    return Counter(row.project for row in rows)


def _attempt(row: Any) -> Attempt:
    return Attempt(row.id, row.job, row.device, row.number, row.worker)
