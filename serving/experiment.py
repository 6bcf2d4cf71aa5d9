"""A candidate beside the version that answers: it sees a share of the requests, or answers a share of the clients.

Shadow: after a request is answered, the candidate gets the same inputs when nothing else is to be done, at the lowest
priority that the system has. Its answer is compared and thrown away. Its times say nothing of what clients would see,
since it waits for everybody: they are not judged.

Split: the candidate answers the clients that fall to it by the hash of a key. What it cannot answer is answered by the
version in use, and counts against the candidate.

After every request the guardrails are looked at, which takes microseconds; the whole verdict is made when somebody
reads it, and once a second.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace

from compiler.target import Arrays
from rollout.answers import Answers
from rollout.latency import Times, late_metrics, quantile_metrics
from rollout.limits import divide_alpha
from rollout.live import Mode, Report, Request, Standing, falls_to_candidate
from rollout.metric import Metric, Role, share_metric
from rollout.shares import Count, exceeds
from rollout.verdict import Decision, Traffic, Verdict, judge
from serving.answers import Answer, BuildFailed, Overloaded
from serving.builds import Build
from serving.deployment import Deployment
from serving.metrics import Metrics
from serving.protocol import BadRequest, Inference

log = logging.getLogger("fleetc.serve")

MOST_WAITING = 64
"""Requests that wait to be mirrored: more would only be older, and hold memory."""

MIRROR_S = 60.0
"""Seconds that the candidate has for a mirrored request."""

IDLE_LOOK_S = 0.005
"""Seconds between two looks whether the server is idle."""

JUDGE_S = 1.0
"""Seconds between two verdicts that nobody asked for: the ramp goes on by them."""

MOST_KEYS = 100_000
"""Keys that are told apart at one step; beyond, their ratio is known well enough."""


CURRENT, CANDIDATE = 0, 1

NO_NUMBER = 422
"""Status of an answer that is no number."""


class Experiment:
    """One candidate, compared until it is rolled back, shipped or stopped.

    Args:
        request: What was asked for, with every limit filled in.
        model: Name of the served model.
        current: The version that answers.
        candidate: The candidate, loaded.
        metrics: Where it counts.
        ended: Called once when a guardrail ended it.
    """

    def __init__(
        self,
        request: Request,
        *,
        model: str,
        current: Deployment,
        candidate: Deployment,
        metrics: Metrics,
        ended: Callable[[], None],
    ) -> None:
        self.request, self.candidate, self._current = request, candidate, current
        self.standing, self._why = Standing.RUNNING, ""
        self._model, self._metrics, self._ended = model, metrics, ended
        self._rules, self._step = request.rules, 0
        self._is_split = request.mode == Mode.SPLIT
        self._alphas = divide_alpha(2, has_latency=self._is_split)
        self._answers = Answers(request.limits.threshold)
        self._times = Times(request.limits), Times(request.limits)
        self._failed = [Count(), Count()]
        self._counts, self._keys = [0, 0], [set[int](), set[int]()]
        self._begun_s = self._step_s = time.monotonic()
        self._ended_s = math.nan
        self._skipped, self._last = 0, judge((), Traffic(0, 0), self._rules)
        self._waiting: asyncio.Queue[tuple[Inference, Answer]] = asyncio.Queue(MOST_WAITING)
        self._random = random.Random(f"{time.time_ns()}")
        self._salt = f"{first_build(candidate).manifest_sha256}{time.time_ns()}"
        self._tasks = [asyncio.create_task(self._go_on())]
        if not self._is_split:
            self._tasks.append(asyncio.create_task(self._mirror()))
        self.tell_state()

    @property
    def is_running(self) -> bool:
        """Whether it takes requests."""
        return self.standing == Standing.RUNNING

    @property
    def share(self) -> float:
        """Share of the requests or clients now."""
        if not self.is_running:
            return 0.0
        return self._rules.ramp[self._step] if self._is_split else self.request.share

    def takes(self, key: str) -> bool:
        """Whether the candidate answers the requests of this key."""
        return self._is_split and self.is_running and falls_to_candidate(key, self.share, salt=self._salt)

    async def ask(self, inference: Inference, key: str) -> Answer | None:
        """The candidate's answer to a request that falls to it; None where it has none, which counts against it."""
        started_s = time.monotonic()
        answer, latency_ms, failed = None, math.inf, 0
        try:
            answer = await self.candidate.infer(inference)
            latency_ms = 1e3 * (time.monotonic() - started_s)
        except Overloaded:
            pass  # later than any limit
        except (BuildFailed, BadRequest) as error:
            if isinstance(error, BadRequest) and error.status != NO_NUMBER:
                return None  # the request's fault: the version in use says what is wrong with it
            log.warning("%s: the candidate failed: %s", self._model, error)
            latency_ms, failed = 1e3 * (time.monotonic() - started_s), 1
        if self.is_running:
            self._see(CANDIDATE, key, latency_ms, failed=failed)
            self._judge_quickly()
        return answer

    def see(self, inference: Inference, answer: Answer, key: str, seconds: float) -> None:
        """Notes a request that the version in use answered."""
        if not self.is_running:
            return
        if self._is_split:
            self._see(CURRENT, key, 1e3 * seconds)
        elif self._random.random() < self.request.share:
            self._counts[CURRENT] += 1
            try:
                self._waiting.put_nowait((inference, answer))
            except asyncio.QueueFull:
                self._skipped += 1

    def see_failure(self, key: str, seconds: float) -> None:
        """Notes a request that the version in use lost."""
        if self.is_running and self._is_split:
            self._see(CURRENT, key, 1e3 * seconds, failed=1)

    async def end(self, standing: Standing, why: str) -> None:
        """Ends it, and the candidate's processes; the last verdict stays."""
        self._finish(standing, why)
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.candidate.drain(MIRROR_S if self._is_split else 0.0)
        await self.candidate.close()

    def report(self) -> Report:
        """Where it stands now."""
        verdict = self._last if not self.is_running else self.verdict()
        candidate, current = first_build(self.candidate), first_build(self._current)
        until_s = time.monotonic() if self.is_running else self._ended_s
        return Report(
            model=self._model,
            mode=self.request.mode,
            standing=self.standing,
            why=self._why,
            share=self.share,
            candidate=self.request.candidate,
            candidate_sha256=candidate.manifest_sha256,
            current_sha256=current.manifest_sha256,
            seconds=until_s - self._begun_s,
            skipped=self._skipped,
            verdict=verdict,
        )

    def verdict(self) -> Verdict:
        """The verdict of this moment."""
        return judge(self._judged(), self._traffic(), self._rules)

    def _judged(self) -> list[Metric]:
        limits = self.request.limits
        if not self._is_split:
            return self._answers.metrics(limits, self._alphas)
        current, candidate = self._failed
        errors = share_metric(
            "errors",
            candidate,
            limit=limits.error_share,
            role=Role.GUARDRAIL,
            current=current,
            alpha=self._alphas.other,
        )
        mine, other = self._times[CANDIDATE], self._times[CURRENT]
        shown = quantile_metrics(mine.values, other.values)
        return [errors, *late_metrics(mine, other, limits, self._alphas), *shown]

    def _traffic(self) -> Traffic:
        current, candidate = self._counts
        keys = (len(self._keys[CURRENT]), len(self._keys[CANDIDATE])) if self._is_split else None
        return Traffic(current, candidate, seconds=time.monotonic() - self._step_s, step=self._step, keys=keys)

    def _see(self, side: int, key: str, latency_ms: float, *, failed: int = 0) -> None:
        self._times[side].add(latency_ms)
        self._failed[side] = self._failed[side].add(failed, 1)
        self._counts[side] += 1
        if len(self._keys[side]) < MOST_KEYS:
            self._keys[side].add(hash(key))

    def _judge_quickly(self) -> None:
        """Rolls back where a guardrail is beyond its limit."""
        limits, alphas = self.request.limits, self._alphas
        if self._is_split:
            is_breached = self._times[CANDIDATE].breached(alphas)
            is_breached |= exceeds(self._failed[CANDIDATE], limits.error_share, alpha=alphas.other)
        else:
            is_breached = self._answers.breached(limits, alphas)
        if is_breached and self.is_running:
            self._last = self.verdict()
            self._finish(Standing.ROLLED_BACK, "; ".join(self._last.reasons))
            self._ended()

    def _finish(self, standing: Standing, why: str) -> None:
        if not self.is_running:
            return
        self._last = self.verdict() if standing != Standing.ROLLED_BACK else self._last
        self.standing, self._why, self._ended_s = standing, why, time.monotonic()
        log.warning("%s: the experiment is %s: %s", self._model, standing, why)
        self.tell_state()

    async def _go_on(self) -> None:
        """Takes the next step of the ramp when the verdict allows it."""
        while self.is_running:
            await asyncio.sleep(JUDGE_S)
            if self._is_split and self._step + 1 < len(self._rules.ramp):
                verdict = self.verdict()
                if verdict.decision == Decision.KEEP_GOING and verdict.next_share is not None:
                    self._climb()
            self.tell_state()

    def _climb(self) -> None:
        self._step += 1
        self._step_s, self._counts, self._keys = time.monotonic(), [0, 0], [set(), set()]
        log.warning("%s: the candidate now answers %s of the clients", self._model, f"{self.share:.0%}")

    async def _mirror(self) -> None:
        """Gives the candidate what was answered, one request at a time, when nobody waits."""
        while True:
            inference, answer = await self._waiting.get()
            while self._current.pending:
                await asyncio.sleep(IDLE_LOOK_S)
            rows = inference.size
            try:
                other = await self.candidate.infer(replace(inference, timeout_s=MIRROR_S, priority=0))
                self._answers.add(self._rows_of(other.outputs), self._rows_of(answer.outputs))
            except (BuildFailed, BadRequest) as error:
                log.warning("%s: the candidate failed: %s", self._model, error)
                self._answers.add_failed(rows)
            except Overloaded as error:  # its process is being started again
                self._skipped += 1
                await asyncio.sleep(min(1.0, error.retry_after_s or IDLE_LOOK_S))
                continue
            self._counts[CANDIDATE] += 1
            self._judge_quickly()

    def _rows_of(self, outputs: Arrays) -> Arrays:
        """Outputs with one row an item."""
        if self._current.signature.batch:
            return outputs
        return {name: array[None] for name, array in outputs.items()}

    def tell_state(self) -> None:
        """Writes where it stands as metrics."""
        metrics, name = self._metrics, first_build(self.candidate).manifest_sha256[:16]
        for standing in Standing:
            metrics.experiment.labels(self._model, name, str(standing)).set(standing == self.standing)
        if not self._is_split and math.isfinite(self._answers.agreement):
            baseline = first_build(self._current).manifest_sha256[:16]
            metrics.agreement.labels(self._model, baseline, name).set(self._answers.agreement)


def first_build(deployment: Deployment) -> Build:
    """The most accurate build, which stands for the version."""
    return next(iter(deployment.builds.values()))
