"""One version of a model at work: its queue, its builds' processes, and the loop that gives them batches.

One batch runs at a time: each build was measured with all of the device's threads. A build that crashes costs the
batch that it had, is taken out and started again; of NaN another build is asked for a second opinion, since the input
may be at fault as well as the build.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.target import Array, Arrays, CompilerError
from serving.batching import Batch, Refusal, Request, Scheduler
from serving.builds import Build, Served
from serving.drift import DriftMonitor
from serving.engine import BuildGone, BuildProcess, BuildRefused, Ran, Shapes
from serving.ladder import Ladder, Reason, ServiceTimes
from serving.metrics import Metrics
from serving.process import has_nan
from serving.protocol import BadRequest, Inference
from serving.resources import Memory, read_memory, resident_bytes

log = logging.getLogger("fleetc.serve")

WATCH_S = 0.25
"""Seconds between two looks at processes and memory."""

HUNG_TIMES, LEAST_HUNG_S = 20.0, 2.0
"""A run that takes so many times what was predicted, and so many seconds at least, hangs."""

TIMED_RUNS = 3
"""Runs at each size when a build is loaded that nobody has timed."""

BACKGROUND_HUNG_S = 60.0
"""The least for a build in the background, which may wait long for the processor."""

UNLOADED_S = 30.0
"""Seconds that a build which was unloaded for want of memory stays away at least."""

NOTED = 10_000
"""Predictions and what happened of the last batches, for whoever measures the server."""


class Overloaded(Exception):
    """A request that is refused or given up: the answer is 503 and says when to try again."""

    def __init__(self, what: str, retry_after_s: float, wait_s: float) -> None:
        super().__init__(what)
        self.what, self.retry_after_s, self.wait_s = what, retry_after_s, wait_s


class BuildFailed(Exception):
    """The batch of this request is lost with its build: the answer is 503."""


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        build: Which build answered.
        outputs: Name → array.
        is_degraded: Whether a more accurate build is on the ladder.
        queue_s: Seconds it waited.
        run_s: Seconds its batch took.
        batch: Items in that batch.
        is_first: Whether it is the first of its batch.
        is_late: Whether its deadline has passed.
    """

    build: Build
    outputs: Arrays
    is_degraded: bool
    queue_s: float
    run_s: float
    batch: int
    is_first: bool
    is_late: bool

    @property
    def facts(self) -> dict[str, str | bool | float]:
        """What the client is told beside the outputs: the parameters of the response."""
        return {
            "variant": self.build.name,
            "precision": self.build.artifact.precision,
            "manifest_sha256": self.build.manifest_sha256,
            "degraded": self.is_degraded,
            "queue_ms": round(self.queue_s * 1e3, 3),
        }


@dataclass(frozen=True)
class _Waiting:
    """A request that was let in."""

    request: Request
    inference: Inference
    future: asyncio.Future[Answer]


class Deployment:
    """One version of a model.

    Args:
        model: Its name, for metrics.
        version: The version.
        served: Its builds, and what it takes and gives.
        slo_s: Time of a request that says nothing.
        metrics: Where it counts.
        is_background: Whether its builds run only when no other process wants the processor.
    """

    def __init__(
        self,
        model: str,
        version: str,
        served: Served,
        *,
        slo_s: float,
        metrics: Metrics,
        is_background: bool = False,
    ) -> None:
        signature, builds = served.signature, served.builds
        self.model, self.version, self.signature, self.slo_s = model, version, signature, slo_s
        self.builds = {build.name: build for build in builds}
        self.drift = DriftMonitor(served.drift)
        rungs = [build.rung for build in builds]
        self.ladder = Ladder(rungs)
        self.predictions: deque[tuple[float, float]] = deque(maxlen=NOTED)
        self._times = ServiceTimes(rungs, signature.largest)
        self._scheduler = Scheduler(self.ladder, self._times, largest=signature.largest)
        self._processes = {build.name: BuildProcess(build.artifact, is_background=is_background) for build in builds}
        self._waiting: dict[int, _Waiting] = {}
        self._metrics, self._work, self._busy = metrics, asyncio.Event(), asyncio.Lock()
        self._number, self._told = 0, 0
        self._tasks: list[asyncio.Task[None]] = []
        self._warmed: set[str] = set()
        self._least_hung_s = BACKGROUND_HUNG_S if is_background else LEAST_HUNG_S

    @property
    def is_ready(self) -> bool:
        """Whether a request can be answered."""
        return bool(self.ladder.usable())

    @property
    def pending(self) -> int:
        """Requests that wait or are run."""
        return len(self._waiting)

    def process_of(self, name: str) -> int | None:
        """Id of a build's process; None where it has none."""
        return self._processes[name].pid

    async def start(self) -> None:
        """Loads the first build that can be loaded; the others follow while it serves.

        Raises:
            CompilerError: No build can be loaded; the first one's reason.
        """
        errors = list[CompilerError]()
        self.ladder.expect_all(time.monotonic())
        for name in self.builds:
            try:
                await self._load(name)
                break
            except CompilerError as error:
                log.warning("%s: %s cannot be loaded: %s", self.model, name, error)
                errors.append(error)
                self.ladder.take_out(name, Reason.CRASHED, time.monotonic())
        else:
            raise errors[0]
        self._tasks = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._watch())]
        self._tell_switches()

    async def infer(self, inference: Inference) -> Answer:
        """Answers a request.

        Raises:
            Overloaded: It cannot be in time, or was given up.
            BuildFailed: The build that had it crashed.
            BadRequest: The build refuses it, or the model gives NaN for it.
        """
        now_s = time.monotonic()
        self._number += 1
        request = Request(
            priority=inference.priority,
            deadline_s=now_s + (inference.timeout_s or self.slo_s),
            number=self._number,
            arrival_s=now_s,
            size=inference.size,
            group=self._group(inference),
        )
        if (refusal := self._scheduler.offer(request, now_s)) is not None:
            raise _overloaded(refusal)
        waiting = _Waiting(request, inference, asyncio.get_running_loop().create_future())
        self._waiting[request.number] = waiting
        self._work.set()
        return await waiting.future  # whose client is gone stays in the queue, and is run for nobody

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Waits until everybody who was let in has an answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._waiting:
                    await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Ends its processes; who still waits is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for waiting in tuple(self._waiting.values()):
            self._fail(waiting, Overloaded("the model is unloaded", 1.0, math.inf))
        await asyncio.gather(*(process.close() for process in self._processes.values()))

    def _group(self, inference: Inference) -> tuple[object, ...]:
        """Requests whose items have the same shapes run together."""
        shapes = tuple(array.shape[1:] if self.signature.batch else array.shape for array in inference.inputs.values())
        return tuple(zip(inference.inputs, shapes, strict=True))

    async def _load(self, name: str) -> None:
        """Starts a build's process; where nobody has timed the build, its first runs are."""
        is_timed = bool(self.builds[name].rung.service_s)
        process = self._processes[name]
        await process.start(self._warm_up(), timed_runs=0 if is_timed else TIMED_RUNS)
        if not is_timed and name not in self._warmed:
            self._times.rebase(name, process.warm_s)
        self._warmed.add(name)
        self.ladder.put_back(name, time.monotonic())
        self._work.set()

    def _warm_up(self) -> dict[int, Shapes]:
        """Batch size → inputs: powers of two up to the largest, other dimensions at their largest."""
        signature = self.signature
        if not signature.batch:
            return {1: signature.shapes(signature.steps(1))}
        sizes = [signature.smallest]
        while sizes[-1] < signature.largest:
            sizes.append(min(2 * sizes[-1], signature.largest))
        return {size: signature.shapes({**signature.steps(1), signature.batch: size}) for size in sizes}

    async def _dispatch(self) -> None:
        """Gives batches to builds, one at a time, for ever."""
        while True:
            now_s = time.monotonic()
            for request in self._scheduler.expire(now_s):
                late = Overloaded("it would be late", 0.0, now_s - request.arrival_s)
                self._fail(self._waiting[request.number], late)
            batch = self._scheduler.next_batch(now_s)
            self._tell_switches()
            if batch is None:
                self._work.clear()
                with contextlib.suppress(TimeoutError):  # somebody may wait for a build that is being started
                    await asyncio.wait_for(self._work.wait(), WATCH_S if len(self._scheduler) else None)
                continue
            async with self._busy:
                await self._run_guarded(batch, now_s)

    async def _run_guarded(self, batch: Batch, started_s: float) -> None:
        """A bug of ours costs the batch that it met, and not everybody who comes after."""
        members = [self._waiting[request.number] for request in batch.members]
        try:
            await self._run(batch, members, started_s)
        except Exception:
            log.exception("%s: a batch ended with a bug of fleetc", self.model)
            self._scheduler.failed()
            for waiting in members:
                self._fail(waiting, BuildFailed("a bug of fleetc: see the server's log"))

    async def _run(self, batch: Batch, members: Sequence[_Waiting], started_s: float) -> None:
        try:
            ran = await self._run_on(batch.rung, members, batch, started_s)
        except BuildGone as error:
            self._scheduler.failed()
            self._lose(batch.rung, error.what)
            for waiting in members:
                self._fail(waiting, BuildFailed(f"the build {batch.rung} {error.what} while it ran this request"))
            return
        except BuildRefused as error:
            self._scheduler.failed()
            for waiting in members:
                self._fail(waiting, BadRequest(str(error)))
            return
        done_s = time.monotonic()
        self._scheduler.finished(batch, started_s, done_s, run_s=ran.seconds)
        self.predictions.append((batch.expected_s - started_s, done_s - started_s))
        self._metrics.prediction.labels(self.model).observe(
            (done_s - started_s) / max(1e-9, batch.expected_s - started_s)
        )
        self._metrics.batch_size.labels(self.model).observe(batch.size)
        if ran.has_nan:
            await self._ask_another(batch, members, ran, started_s)
            return
        self._answer(batch.rung, members, ran, batch.size, started_s)

    async def _run_on(self, name: str, members: Sequence[_Waiting], batch: Batch, started_s: float) -> Ran:
        expected_s = max(0.0, batch.expected_s - started_s)
        return await self._processes[name].run(
            [waiting.inference.inputs for waiting in members],
            self._shapes(members, batch.size),
            timeout_s=max(self._least_hung_s, HUNG_TIMES * expected_s),
        )

    def _shapes(self, members: Sequence[_Waiting], size: int) -> Shapes:
        """The whole batch's inputs; filled up to the smallest batch that the build takes."""
        length = max(size, self.signature.smallest)
        return [
            (spec.name, spec.dtype, [length, *array.shape[1:]] if self.signature.batch else list(array.shape))
            for spec in self.signature.inputs
            for array in (members[0].inference.inputs[spec.name],)
        ]

    async def _ask_another(self, batch: Batch, members: Sequence[_Waiting], ran: Ran, started_s: float) -> None:
        """A build gave NaN: if another does not, the first is at fault; if it does too, the inputs are."""
        others = [place for place in self.ladder.usable() if self.ladder.rungs[place].name != batch.rung]
        for place in others:
            name = self.ladder.rungs[place].name
            try:
                second = await self._run_on(name, members, batch, started_s)
            except BuildGone as error:
                self._lose(name, error.what)
                continue
            except BuildRefused:
                continue
            if not second.has_nan:
                log.error("%s: %s gives NaN where %s does not", self.model, batch.rung, name)
                self._take_out(batch.rung, Reason.NAN)
                self._answer(name, members, second, batch.size, started_s)
                return
            break
        self._answer(batch.rung, members, ran, batch.size, started_s)

    def _answer(self, name: str, members: Sequence[_Waiting], ran: Ran, size: int, started_s: float) -> None:
        now_s, offset = time.monotonic(), 0
        is_degraded = name != self.ladder.rungs[0].name
        for waiting in members:
            request = waiting.request
            outputs = self._part(ran.outputs, offset, request.size)
            offset += request.size
            if ran.has_nan and any(map(has_nan, outputs.values())):
                self._fail(waiting, BadRequest("the model gives NaN for this input", 422))
                continue
            answer = Answer(
                build=self.builds[name],
                outputs=outputs,
                is_degraded=is_degraded,
                queue_s=started_s - request.arrival_s,
                run_s=ran.seconds,
                batch=size,
                is_first=waiting is members[0],
                is_late=now_s > request.deadline_s,
            )
            self._waiting.pop(request.number, None)
            if not waiting.future.done():
                waiting.future.set_result(answer)
            self.drift.see(waiting.inference.inputs, outputs, request.size)

    def _part(self, outputs: Arrays, offset: int, size: int) -> dict[str, Array]:
        if not self.signature.batch:
            return dict(outputs)
        return {name: array[offset : offset + size] for name, array in outputs.items()}

    def _lose(self, name: str, what: str) -> None:
        log.error("%s: %s %s", self.model, name, what)
        self.ladder.take_out(name, Reason.CRASHED, time.monotonic())
        self._tell_switches()

    def _take_out(self, name: str, reason: Reason, for_s: float | None = None) -> None:
        """No longer uses a build; its process is ended once it runs nothing."""
        self.ladder.take_out(name, reason, time.monotonic(), for_s=for_s)
        self._tell_switches()

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        self._waiting.pop(waiting.request.number, None)
        if not waiting.future.done():
            waiting.future.set_exception(error)

    async def _watch(self) -> None:
        """Starts absent builds again when they are due, and unloads one where memory is short."""
        while True:
            for name, process in self._processes.items():
                if not process.is_alive and self.ladder.absence(name) is None:
                    self._lose(name, "ended while nothing ran")
                if process.is_alive and self.ladder.absence(name) is not None:
                    async with self._busy:  # a batch that it has is answered
                        await process.close()
            memory = read_memory()
            self._spare(memory)
            for name in self.ladder.due(time.monotonic()):
                await self._try_again(name, memory)
            await asyncio.sleep(0.02 if not self.is_ready else WATCH_S)

    def _spare(self, memory: Memory) -> None:
        usable = [self.ladder.rungs[place].name for place in self.ladder.usable()]
        if not memory.is_short or len(usable) < 2:
            return
        costliest = max(usable[:-1], key=lambda name: resident_bytes(self._processes[name].pid or 0))
        log.warning("%s: memory is short (%d MiB free): %s is unloaded", self.model, memory.free_bytes >> 20, costliest)
        self._take_out(costliest, Reason.MEMORY, for_s=UNLOADED_S)

    async def _try_again(self, name: str, memory: Memory) -> None:
        needed = max(self.builds[name].rung.memory_bytes, *(resident_bytes(p.pid or 0) for p in self._running()), 0)
        if self.is_ready and not memory.has_room(needed):
            self.ladder.postpone(name, time.monotonic() + UNLOADED_S)
            return
        try:
            await self._load(name)
            log.info("%s: %s is loaded", self.model, name)
        except CompilerError as error:
            log.warning("%s: %s cannot be loaded: %s", self.model, name, error)
            self.ladder.take_out(name, Reason.CRASHED, time.monotonic())
        self._tell_switches()

    def _running(self) -> list[BuildProcess]:
        return [process for process in self._processes.values() if process.is_alive]

    def _tell_switches(self) -> None:
        """Every switch is an event with its reason, in the log and in the metrics."""
        for switch in self.ladder.switches[self._told :]:
            log.info("%s: %s answers instead of %s: %s", self.model, switch.target, switch.source, switch.reason)
            labels = {"from": switch.source, "to": switch.target, "reason": str(switch.reason)}
            self._metrics.switches.labels(model=self.model, **labels).inc()
        self._told = len(self.ladder.switches)

    def tell_state(self) -> None:
        """What is so now, as metrics."""
        metrics, current = self._metrics, self.ladder.current.name
        self.drift.tell(self.model, metrics)
        metrics.pending.labels(self.model).set(self.pending)
        for name, process in self._processes.items():
            metrics.rung.labels(self.model, name).set(name == current)
            metrics.available.labels(self.model, name).set(self.ladder.absence(name) is None)
            metrics.memory.labels(self.model, name).set(resident_bytes(process.pid or 0))


def _overloaded(refusal: Refusal) -> Overloaded:
    if math.isinf(refusal.wait_s):
        return Overloaded("no build is loaded", refusal.retry_after_s, refusal.wait_s)
    what = f"it would be answered in {refusal.wait_s * 1e3:.1f} ms, later than its deadline"
    return Overloaded(what, refusal.retry_after_s, refusal.wait_s)
