"""A served model: the version that answers, the one before it, and the change from one to the other.

A new version is read, every file compared with its digest, loaded and run before it answers anything. Requests that
the old one has are answered by it. It stays loaded, so that going back takes no time; the next change lets it go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.target import CompilerError, DataError
from rollout.live import Mode, Request, Standing
from serving.answers import Answer, BuildFailed, Overloaded
from serving.builds import Build, Served, read_builds
from serving.deployment import Deployment
from serving.described import Statistics
from serving.experiment import Experiment, first_build
from serving.metrics import Metrics, Outcome
from serving.protocol import BadRequest, Inference


class ServedModel:
    """One model under a name.

    Args:
        name: What clients call it.
        folders: Artifacts of one model; the first may have a ladder of its own.
        slo_s: Time of a request that says nothing.
        metrics: Where it counts.
    """

    def __init__(self, name: str, folders: Sequence[Path], *, slo_s: float, metrics: Metrics) -> None:
        self.name, self.slo_s = name, slo_s
        self._folders, self._metrics = tuple(folders), metrics
        self._current: Deployment | None = None
        self._previous: Deployment | None = None
        self._versions = 0
        self._change = asyncio.Lock()
        self._experiment: Experiment | None = None
        self._ending: asyncio.Task[None] | None = None
        self.statistics = Statistics()
        self.state_reason = ""

    @property
    def current(self) -> Deployment:
        """The version that answers.

        Raises:
            BadRequest: The model is not loaded.
        """
        if self._current is None:
            raise BadRequest(f"model '{self.name}' is not loaded", 404)
        return self._current

    @property
    def is_loaded(self) -> bool:
        """Whether there is a version that answers, or will as soon as one of its builds is up again."""
        return self._current is not None

    @property
    def is_ready(self) -> bool:
        """Whether a request can be answered."""
        return self._current is not None and self._current.is_ready

    def deployment(self, version: str) -> Deployment:
        """The version of that number; the current one where it is empty.

        Raises:
            BadRequest: There is none.
        """
        if version in ("", self.current.version):
            return self.current
        raise BadRequest(f"model '{self.name}' has no version {version[:40]!r}; it is at {self.current.version}", 404)

    @property
    def experiment(self) -> Experiment:
        """The experiment that runs, or ran last.

        Raises:
            BadRequest: There was none.
        """
        if self._experiment is None:
            raise BadRequest(f"model '{self.name}' has no experiment", 404)
        return self._experiment

    async def begin(self, request: Request) -> Experiment:
        """Loads a candidate beside the version that answers, and compares both.

        Raises:
            BadRequest: An experiment runs, or the candidate cannot be compared.
            CompilerError: The candidate cannot be served.
        """
        async with self._change:
            current = self.current
            if self._experiment is not None and self._experiment.is_running:
                raise BadRequest(f"model '{self.name}' has an experiment already: stop or ship it first", 409)
            served = await asyncio.to_thread(read_builds, [Path(request.candidate)])
            _refuse_incomparable(request, served, current)
            candidate = Deployment(
                f"{self.name}@candidate",
                "candidate",
                served,
                slo_s=self.slo_s,
                metrics=self._metrics,
                is_background=request.mode == Mode.SHADOW,
            )
            await self._begin(candidate)
            self._experiment = Experiment(
                self._complete(request, current),
                model=self.name,
                current=current,
                candidate=candidate,
                metrics=self._metrics,
                ended=self._clear_up,
            )
            return self._experiment

    async def end_experiment(self, standing: Standing, why: str) -> None:
        """Ends the experiment that runs; its last verdict can still be read.

        Raises:
            BadRequest: None runs.
        """
        if not self.experiment.is_running:
            raise BadRequest(f"the experiment of model '{self.name}' is {self.experiment.standing}", 409)
        await self.experiment.end(standing, why)

    async def ship(self) -> None:
        """Ends the experiment and lets the candidate answer everybody; the build before stays loaded to go back to.

        Raises:
            BadRequest: None runs.
            CompilerError: The candidate cannot be loaded; the version that answered goes on.
        """
        experiment = self.experiment
        await self.end_experiment(Standing.SHIPPED, "somebody shipped it")
        before, self._folders = self._folders, (Path(experiment.request.candidate),)
        try:
            await self.load()
        except CompilerError:
            self._folders = before
            raise

    async def load(self) -> None:
        """Loads what the folders hold now, and lets it answer.

        Raises:
            CompilerError: It cannot be served; the version that answered goes on.
        """
        async with self._change:
            await self._stop_experiment()
            try:
                served = await asyncio.to_thread(read_builds, self._folders)
                new = Deployment(self.name, str(self._versions + 1), served, slo_s=self.slo_s, metrics=self._metrics)
                await self._begin(new)
            except CompilerError as error:
                self.state_reason = error.what
                raise
            self._versions += 1
            self.state_reason = ""
            old, self._previous, self._current = self._previous, self._current, new
            self._describe(new)
            if old is not None:
                await old.close()

    async def go_back(self) -> None:
        """Lets the version before answer again.

        Raises:
            DataError: There is none.
        """
        async with self._change:
            await self._stop_experiment()
            if self._previous is None:
                raise DataError("there is no version before this one", where=self.name, remedy="Load one first.")
            self._previous, self._current = self._current, self._previous
            self._describe(self.current)

    async def unload(self) -> None:
        """Answers what was let in, and then nothing."""
        async with self._change:
            await self._stop_experiment()
            deployments = [deployment for deployment in (self._current, self._previous) if deployment]
            self._current = self._previous = None
            self.state_reason = "unloaded"
            for deployment in deployments:
                await deployment.drain()
                await deployment.close()

    async def infer(self, inference: Inference, deployment: Deployment, key: str = "") -> Answer:
        """Answers a request, and counts what became of it.

        Args:
            inference: The request.
            deployment: The version that is asked.
            key: What the client calls the request, the session or the user: an experiment divides by it.
        """
        started_s = time.monotonic()
        variant, outcome = "", Outcome.ERROR
        try:
            answer = await self._ask(inference, deployment, key)
            variant, outcome = answer.build.name, Outcome.LATE if answer.is_late else Outcome.OK
            self._metrics.queue.labels(self.name).observe(answer.queue_s)
            self.statistics.note(answer, inference.size, time.monotonic() - started_s)
            return answer
        except Overloaded:
            outcome = Outcome.SHED
            raise
        except BadRequest:
            outcome = Outcome.INVALID
            raise
        except BuildFailed:
            raise
        finally:
            self._metrics.requests.labels(self.name, variant, str(outcome)).inc()
            seconds = time.monotonic() - started_s
            self._metrics.duration.labels(self.name).observe(seconds)
            if outcome not in (Outcome.OK, Outcome.LATE):
                self.statistics.add("fail", seconds)

    async def _ask(self, inference: Inference, deployment: Deployment, key: str) -> Answer:
        experiment = self._experiment
        if experiment is None or not experiment.is_running or deployment is not self._current:
            return await deployment.infer(inference)
        if experiment.takes(key):
            # what the candidate cannot answer, the version in use does: an experiment costs nobody an answer
            return await experiment.ask(inference, key) or await deployment.infer(inference)
        started_s = time.monotonic()
        try:
            answer = await deployment.infer(inference)
        except BuildFailed:
            experiment.see_failure(key, time.monotonic() - started_s)
            raise
        experiment.see(inference, answer, key, time.monotonic() - started_s)
        return answer

    def tell_state(self) -> None:
        """Writes as metrics what changes without a request: its version, and an experiment that runs."""
        if self._current is not None:
            self._current.tell_state()
        if self._experiment is not None and self._experiment.is_running:
            self._experiment.tell_state()

    def index_row(self) -> dict[str, str]:
        """The model in the repository's index."""
        return {
            "name": self.name,
            "version": self.current.version if self.is_loaded else "",
            "state": "READY" if self.is_ready else "UNAVAILABLE",
            "reason": self.state_reason,
        }

    def stats(self) -> dict[str, Any]:
        """Triton's statistics of the version that answers."""
        return {"name": self.name, "version": self.current.version, **self.statistics.rows()}

    def _complete(self, request: Request, current: Deployment) -> Request:
        """The request with the limits that the server and the build know."""
        limits = request.limits
        gates = [gate.limit for gate in first_build(current).gates if gate.name == "latency"]
        latency_ms = 1e3 * self.slo_s if limits.latency_ms is None else limits.latency_ms
        median_ms = min(gates, default=None) if limits.median_ms is None else limits.median_ms
        return replace(request, limits=replace(limits, latency_ms=latency_ms, median_ms=median_ms))

    def _clear_up(self) -> None:
        """After a guardrail ended the experiment: the candidate's processes go, while requests go on."""
        if self._experiment is not None:
            ending = self._experiment.end(Standing.ROLLED_BACK, "")
            self._ending = asyncio.get_running_loop().create_task(ending)

    async def _stop_experiment(self) -> None:
        if self._experiment is not None and self._experiment.is_running:
            await self._experiment.end(Standing.STOPPED, "the version in use was changed")

    async def _begin(self, new: Deployment) -> None:
        try:
            await new.start()
        except CompilerError:
            await new.close()
            raise

    def _describe(self, deployment: Deployment) -> None:
        """The facts of the builds, as metrics; those of versions that are gone are taken away."""
        metrics = self._metrics
        for family in metrics.of_builds:
            family.clear()
        metrics.slo.labels(self.name).set(self.slo_s)
        for build in deployment.builds.values():
            self._describe_build(build)

    def _describe_build(self, build: Build) -> None:
        metrics, name = self._metrics, build.name
        metrics.build_info.labels(
            self.name,
            name,
            build.device,
            build.profile,
            build.artifact.precision,
            build.manifest_sha256,
            build.runtime,
        ).set(1)
        metrics.accuracy.labels(self.name, name).set(build.rung.accuracy)
        for gate in build.gates:
            metrics.gate_limit.labels(self.name, name, gate.name).set(gate.limit)
            if gate.observed is not None:
                metrics.gate_observed.labels(self.name, name, gate.name).set(gate.observed)


def _refuse_incomparable(request: Request, served: Served, current: Deployment) -> None:
    digests = [build.manifest_sha256 for build in current.builds.values()]
    if request.against not in digests:
        raise BadRequest(
            f"the build in use has the manifest {digests[0][:16]} and not {request.against[:16]}: "
            "name the folder that is served with --against",
            409,
        )
    if served.builds[0].manifest_sha256 in digests:
        raise BadRequest("the candidate is the current build: there is nothing to compare", 409)
    if served.signature != current.signature:
        raise BadRequest("the candidate takes or gives other tensors than the build in use", 409)


def find_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """The model of a name that a client gave.

    Raises:
        BadRequest: There is none.
    """
    if name not in models:
        raise BadRequest(f"there is no model {name[:80]!r}", 404)
    return models[name]
