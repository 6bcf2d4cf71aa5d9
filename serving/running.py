"""The builds of one version at work: their processes, which of them may be used, and their memory.

A build that crashes is taken out and started again, and one is unloaded where memory is short.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from compiler.target import Arrays, CompilerError
from serving.builds import Build
from serving.engine import BuildProcess, Ran, Shapes
from serving.ladder import Ladder, Reason, ServiceTimes
from serving.metrics import Metrics
from serving.protocol import Signature
from serving.resources import Memory, read_memory, resident_bytes

log = logging.getLogger("fleetc.serve")

WATCH_S = 0.25
"""Seconds between two looks at processes and memory."""

HUNG_TIMES, LEAST_HUNG_S = 20.0, 2.0
"""A run that takes so many times what was predicted, and so many seconds at least, hangs."""

BACKGROUND_HUNG_S = 60.0
"""The least for a build in the background, which may wait long for the processor."""

TIMED_RUNS = 3
"""Runs at each size when a build is loaded that nobody has timed."""

UNLOADED_S = 30.0
"""Seconds that a build which was unloaded for want of memory stays away at least."""


class RunningBuilds:
    """The builds of one version, each in its process.

    Args:
        model: Name of the model, for the log and metrics.
        builds: The builds by name, the most accurate first.
        signature: What they take and give.
        ladder: Which of them may be used.
        times: What a run is predicted to take.
        metrics: Where it counts.
        available: Set when a build may be used again.
        is_background: Whether they run only when no other process wants the processor.
    """

    def __init__(
        self,
        model: str,
        builds: Mapping[str, Build],
        *,
        signature: Signature,
        ladder: Ladder,
        times: ServiceTimes,
        metrics: Metrics,
        available: asyncio.Event,
        is_background: bool,
    ) -> None:
        self._model, self._builds, self._signature = model, builds, signature
        self._ladder, self._times, self._metrics = ladder, times, metrics
        self._processes = {
            name: BuildProcess(build.artifact, is_background=is_background) for name, build in builds.items()
        }
        self._least_hung_s = BACKGROUND_HUNG_S if is_background else LEAST_HUNG_S
        self._warmed: set[str] = set()
        self._told = 0
        self._available = available
        self.busy = asyncio.Lock()
        """Held while a batch runs: no process is ended under it."""

    def process_of(self, name: str) -> int | None:
        """Id of a build's process; None where it has none."""
        return self._processes[name].pid

    async def start(self) -> None:
        """Loads the first build that can be loaded; the others follow in `watch`.

        Raises:
            CompilerError: No build can be loaded; the first one's reason.
        """
        errors = list[CompilerError]()
        self._ladder.expect_all(time.monotonic())
        for name in self._builds:
            try:
                await self._load(name)
                break
            except CompilerError as error:
                self._note_unloadable(name, error)
                errors.append(error)
        else:
            raise errors[0]

    async def run(self, name: str, batch: Sequence[Arrays], shapes: Shapes, *, expected_s: float) -> Ran:
        """Runs a batch on a build.

        Raises:
            BuildGone, BuildRefused: As of `BuildProcess.run`.
        """
        timeout_s = max(self._least_hung_s, HUNG_TIMES * expected_s)
        return await self._processes[name].run(batch, shapes, timeout_s=timeout_s)

    def lose(self, name: str, what: str) -> None:
        """Takes out a build whose process is gone."""
        log.error("%s: %s %s", self._model, name, what)
        self.take_out(name, Reason.CRASHED)

    def take_out(self, name: str, reason: Reason, for_s: float | None = None) -> None:
        """No longer uses a build; its process is ended once it runs nothing."""
        self._ladder.take_out(name, reason, time.monotonic(), for_s=for_s)
        self.tell_switches()

    async def watch(self) -> None:
        """Starts absent builds again when they are due, and unloads one where memory is short; for ever."""
        while True:
            for name, process in self._processes.items():
                if not process.is_alive and self._ladder.absence(name) is None:
                    self.lose(name, "ended while nothing ran")
            memory = read_memory()
            self._spare(memory)
            await self._end_absent()  # before another one is loaded in the place of one that was spared
            for name in self._ladder.due(time.monotonic()):
                await self._try_again(name, memory)
            await asyncio.sleep(WATCH_S if self._ladder.usable() else 0.02)

    async def close(self) -> None:
        """Ends all processes."""
        await asyncio.gather(*(process.close() for process in self._processes.values()))

    def tell_switches(self) -> None:
        """Every switch is an event with its reason, in the log and in the metrics."""
        for switch in self._ladder.switches[self._told :]:
            log.info("%s: %s answers instead of %s: %s", self._model, switch.target, switch.source, switch.reason)
            labels = {"from": switch.source, "to": switch.target, "reason": str(switch.reason)}
            self._metrics.switches.labels(model=self._model, **labels).inc()
        self._told = len(self._ladder.switches)

    def tell_state(self) -> None:
        """What is so now, as metrics."""
        metrics, current = self._metrics, self._ladder.current.name
        for name, process in self._processes.items():
            metrics.rung.labels(self._model, name).set(name == current)
            metrics.available.labels(self._model, name).set(self._ladder.absence(name) is None)
            metrics.memory.labels(self._model, name).set(resident_bytes(process.pid or 0))

    async def _load(self, name: str) -> None:
        """Starts a build's process; where nobody has timed the build, its first runs are."""
        is_timed = bool(self._builds[name].rung.service_s)
        process = self._processes[name]
        await process.start(self._warm_up(), timed_runs=0 if is_timed else TIMED_RUNS)
        if not is_timed and name not in self._warmed:
            self._times.rebase(name, process.warm_s)
        self._warmed.add(name)
        self._ladder.put_back(name, time.monotonic())
        self._available.set()

    def _warm_up(self) -> dict[int, Shapes]:
        """Batch size → inputs: powers of two up to the largest, other dimensions at their largest."""
        signature = self._signature
        if not signature.batch:
            return {1: signature.shapes(signature.steps(1))}
        sizes = [signature.smallest]
        while sizes[-1] < signature.largest:
            sizes.append(min(2 * sizes[-1], signature.largest))
        return {size: signature.shapes({**signature.steps(1), signature.batch: size}) for size in sizes}

    async def _end_absent(self) -> None:
        for name, process in self._processes.items():
            if process.is_alive and self._ladder.absence(name) is not None:
                async with self.busy:  # a batch that it has is answered
                    await process.close()

    def _spare(self, memory: Memory) -> None:
        """Where memory is short: unloads the largest build but the cheapest, or the only one for a smaller one."""
        usable = [self._ladder.rungs[place].name for place in self._ladder.usable()]
        if not memory.is_short or not usable:
            return
        if len(usable) == 1:
            smaller = self._smaller_than(usable[0])
            if smaller is None:
                return
            self._ladder.postpone(smaller, time.monotonic())  # due at once
        costliest = max(usable[:-1] or usable, key=self._resident_bytes)
        free_mib = memory.free_bytes >> 20
        log.warning("%s: memory is short (%d MiB free): %s is unloaded", self._model, free_mib, costliest)
        self.take_out(costliest, Reason.MEMORY, for_s=UNLOADED_S)

    def _smaller_than(self, name: str) -> str | None:
        """The next cheaper build that is absent for no fault of its own and was measured to take less memory."""
        names = list(self._builds)
        most_bytes = self._builds[name].rung.memory_bytes
        for other in names[names.index(name) + 1 :]:
            absence = self._ladder.absence(other)
            is_sound = absence is not None and absence.reason in (Reason.STARTING, Reason.MEMORY)
            if is_sound and 0 < self._builds[other].rung.memory_bytes < most_bytes:
                return other
        return None

    async def _try_again(self, name: str, memory: Memory) -> None:
        alive = [other for other, process in self._processes.items() if process.is_alive]
        needed = max(self._builds[name].rung.memory_bytes, *map(self._resident_bytes, alive), 0)
        if self._ladder.usable() and not memory.has_room(needed):
            self._ladder.postpone(name, time.monotonic() + UNLOADED_S)
            return
        try:
            await self._load(name)
            log.info("%s: %s is loaded", self._model, name)
        except CompilerError as error:
            self._note_unloadable(name, error)
        self.tell_switches()

    def _note_unloadable(self, name: str, error: CompilerError) -> None:
        log.warning("%s: %s cannot be loaded: %s", self._model, name, error)
        self._ladder.take_out(name, Reason.CRASHED, time.monotonic())

    def _resident_bytes(self, name: str) -> int:
        return resident_bytes(self._processes[name].pid or 0)
