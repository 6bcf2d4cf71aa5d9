"""Devices side by side: a thread for each, as many at a time as were asked for.

Stages spend their time in child processes, or in libraries that release the interpreter's lock. What two devices have
in common is made by whichever comes first, while the other waits for it. What is timed runs alone:
`compiler.store.gate`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest

from compiler.compress.threads import one_blas_thread
from compiler.model.process import kill_children
from compiler.plan.jobs import Job
from compiler.store import Store
from compiler.store.parsing import parse_one_at_a_time

# `join` without a limit would not let an interrupt through
POLL_S = 0.1
PATIENCE_S = 1.0
"""How long an interrupt waits for a thread whose children were killed; what computes on ends with the process."""


def start_order(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The devices in the order in which they are begun: one of each target in turn, in the fleet's order otherwise.

    Devices of one target share most stages, and the second would wait for the first. Those with an accelerator begin,
    since without that accelerator here nothing of them is run in an emulator or timed: they are the first delivered.
    """
    groups: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.profile.accelerator is None):
        groups.setdefault(job.target.name, []).append(job)
    return tuple(job for turn in zip_longest(*groups.values()) for job in turn if job is not None)


def work_side_by_side(
    jobs: Sequence[Job], work: Callable[[Job], None], *, store: Store, most: int, stop: Callable[[], None]
) -> None:
    """Does the work of every device; with one at a time in the fleet's order and on the calling thread.

    Args:
        jobs: The devices.
        work: What is done for one; an error of its own must stay inside.
        store: The store of the build.
        most: Devices at a time, ≥ 1.
        stop: Makes the work of all devices end soon; called before their children are killed.

    Raises:
        KeyboardInterrupt: The command was interrupted; all children are killed.
    """
    parse_one_at_a_time()
    # BLAS on one thread whatever `most` is: sums in another order give other bytes, and its threads wait actively
    with one_blas_thread():
        if min(most, len(jobs)) < 2:
            for job in jobs:
                with store.gate.working():
                    work(job)
        else:
            _Pool(start_order(jobs), work, store, stop).run(min(most, len(jobs)))


class _Pool:
    """Threads that take one device after another.

    Args:
        jobs: In the order in which they are begun.
        work: What is done for one.
        store: The store of the build.
        stop: Makes the work of all devices end soon.
    """

    def __init__(
        self, jobs: Sequence[Job], work: Callable[[Job], None], store: Store, stop: Callable[[], None]
    ) -> None:
        self._left, self._work, self._store, self._stop = deque(jobs), work, store, stop
        self._errors: list[BaseException] = []

    def run(self, count: int) -> None:
        """Returns when all is done; raises what a device's work let through."""
        # daemons: an interrupt must not wait for what a library computes
        threads = [threading.Thread(target=self._take, name=f"fleetc-device-{n}", daemon=True) for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL_S)
        except BaseException:
            self._end(threads)
            raise
        if self._errors:
            raise self._errors[0]

    def _take(self) -> None:
        while self._left:
            try:
                job = self._left.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                with self._store.gate.working():
                    self._work(job)
            except BaseException as error:  # handed to the thread that waits for all of them
                self._left.clear()
                self._errors.append(error)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._left.clear()
        self._stop()
        for thread in threads:
            kill_children()
            if thread.is_alive():
                thread.join(PATIENCE_S)
