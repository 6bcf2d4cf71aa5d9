"""One version of a model at work: its queue, and the loop that gives batches to its builds.

One batch runs at a time: each build was measured with all of the device's threads. A build that crashes costs the
batch that it had; of NaN another build is asked for a second opinion, since the input may be at fault as well as the
build.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.target import Array, Arrays
from serving.answers import Answer, BuildFailed, Overloaded, overloaded
from serving.batching import Batch, Request, Scheduler
from serving.builds import Served
from serving.drift import DriftMonitor
from serving.engine import BuildGone, BuildRefused, Ran, Shapes
from serving.ladder import Ladder, Reason, ServiceTimes
from serving.metrics import Metrics
from serving.process import has_nan
from serving.protocol import BadRequest, Inference
from serving.running import RunningBuilds

log = logging.getLogger("fleetc.serve")

WAIT_S = 0.25
"""Seconds between two looks at a queue that waits for a build."""

GATHER_S = 0.002
"""Seconds that a batch waits for requests that are being read: what runs together takes less than one after another."""

NOTED = 10_000
"""Predictions and what happened of the last batches, for whoever measures the server."""


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
        times = ServiceTimes(rungs, signature.largest)
        self._scheduler = Scheduler(self.ladder, times, largest=signature.largest)
        self._waiting: dict[int, _Waiting] = {}
        self._metrics, self._work, self._number = metrics, asyncio.Event(), 0
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: list[float] = []
        self._read = asyncio.Event()
        self._running = RunningBuilds(
            model,
            self.builds,
            signature=signature,
            ladder=self.ladder,
            times=times,
            metrics=metrics,
            available=self._work,
            is_background=is_background,
        )

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
        return self._running.process_of(name)

    async def start(self) -> None:
        """Loads the first build that can be loaded; the others follow while it serves.

        Raises:
            CompilerError: No build can be loaded; the first one's reason.
        """
        await self._running.start()
        self._tasks = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._running.watch())]
        self._running.tell_switches()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While a request is read: a batch that begins meanwhile waits a moment for it."""
        begun_s = time.monotonic()
        self._reading.append(begun_s)
        try:
            yield
        finally:
            self._reading.remove(begun_s)
            self._read.set()

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
            raise overloaded(refusal)
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
        await self._running.close()

    def _group(self, inference: Inference) -> tuple[object, ...]:
        """Requests whose items have the same shapes run together."""
        shapes = tuple(array.shape[1:] if self.signature.batch else array.shape for array in inference.inputs.values())
        return tuple(zip(inference.inputs, shapes, strict=True))

    async def _dispatch(self) -> None:
        """Gives batches to builds, one at a time, for ever."""
        while True:
            await self._gather()
            now_s = time.monotonic()
            for request in self._scheduler.expire(now_s):
                late = Overloaded("it would be late", 0.0, now_s - request.arrival_s)
                self._fail(self._waiting[request.number], late)
            batch = self._scheduler.next_batch(now_s)
            self._running.tell_switches()
            if batch is None:
                self._work.clear()
                with contextlib.suppress(TimeoutError):  # somebody may wait for a build that is being started
                    await asyncio.wait_for(self._work.wait(), WAIT_S if len(self._scheduler) else None)
                continue
            async with self._running.busy:
                await self._run_guarded(batch, now_s)

    async def _gather(self) -> None:
        """Waits until the requests that have come are read; no longer than a moment, which a slow client exceeds."""
        for _ in range(2):  # in the first round of the loop their sockets are read, in the second their handlers begin
            await asyncio.sleep(0)
        while self._reading and len(self._scheduler):
            left_s = self._reading[-1] + GATHER_S - time.monotonic()
            if left_s <= 0.0:
                return
            self._read.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._read.wait(), left_s)

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
            self._running.lose(batch.rung, error.what)
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
        return await self._running.run(
            name,
            [waiting.inference.inputs for waiting in members],
            self._shapes(members, batch.size),
            expected_s=max(0.0, batch.expected_s - started_s),
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
                self._running.lose(name, error.what)
                continue
            except BuildRefused:
                continue
            if not second.has_nan:
                log.error("%s: %s gives NaN where %s does not", self.model, batch.rung, name)
                self._running.take_out(batch.rung, Reason.NAN)
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

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        self._waiting.pop(waiting.request.number, None)
        if not waiting.future.done():
            waiting.future.set_exception(error)

    def tell_state(self) -> None:
        """What is so now, as metrics."""
        self.drift.tell(self.model, self._metrics)
        self._metrics.pending.labels(self.model).set(self.pending)
        self._running.tell_state()
