"""Dask behind five calls: which workers there are, sending them an attempt, stopping, hearing of ends, and closing.

The engine may lose an attempt at any moment; the tables are the truth. Nothing but one JSON text crosses to a worker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import dask
import distributed

from server.attempt import Workplace, run_call

SLOT = "slot"
"""The resource of Dask that every attempt takes one of: a worker has as many as it builds side by side."""

PLENTY = 1e9
"""A worker's amount of each label: labels say what it can do, and are never used up."""

SILENT_S = 10.0
"""A worker that Dask has not heard of for so long takes no new attempt."""

NOWHERE = "127.0.0.1:0"
"""Where Dask's nodes have their HTTP servers, without a route; by default they are on the machine's own address."""

QUIET = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.admin.large-graph-warning-threshold": "1GB",
    "distributed.scheduler.allowed-failures": 0,  # retries are counted in the tables, for reasons that Dask cannot know
    "distributed.scheduler.worker-ttl": "60 seconds",
    "distributed.worker.daemon": False,
    "distributed.logging": {"distributed": "error"},
}

log = logging.getLogger("fleetc.server")


@dataclass(frozen=True)
class WorkerFacts:
    """A worker that is connected.

    Args:
        name: Its name.
        address: Where Dask reaches it.
        labels: What it can do.
        slots: How many attempts it runs side by side.
        version: Its fleetc.
        seen: When it was last heard of, seconds since 1970.
    """

    name: str
    address: str
    labels: frozenset[str]
    slots: int
    version: str
    seen: float


Ended: TypeAlias = Callable[[str, str], None]
"""Is told the id of an attempt that the engine no longer runs, and how that came; empty where it returned."""


class BuildEngine(Protocol):
    """What the dispatcher needs of an engine."""

    @property
    def address(self) -> str:
        """Where workers join."""
        ...

    def capacity(self) -> Sequence[WorkerFacts]:
        """The workers that are connected."""
        ...

    def submit(self, worker: WorkerFacts, attempt: str, call: str) -> None:
        """Sends an attempt to a worker."""
        ...

    def stop(self, attempt: str) -> None:
        """Takes an attempt back that has not begun; one that runs is told by the server when it next reports."""
        ...

    def events(self, ended: Ended) -> None:
        """Names who is told of attempts that have ended."""
        ...

    def close(self) -> None:
        """Gives up what runs, and ends."""
        ...


class BuildWorker(distributed.Worker):  # type: ignore[misc]  # Dask is untyped
    """A worker of Dask that knows where its builds are made.

    Args:
        workplace: Where.
    """

    def __init__(self, *args: Any, workplace: Workplace, **options: Any) -> None:
        self.workplace = workplace
        super().__init__(*args, **options)


def work(call: str) -> None:
    """What a worker runs: one attempt."""
    run_call(call, distributed.get_worker().workplace)


def worker_options(name: str, labels: frozenset[str], workplace: Workplace) -> dict[str, Any]:
    """How a worker is started, embedded or alone."""
    return {
        "nthreads": workplace.slots,
        "name": name,
        "resources": {SLOT: workplace.slots, f"fleetc=={version('fleetc')}": PLENTY} | dict.fromkeys(labels, PLENTY),
        "local_directory": str(workplace.folder / "dask"),
        "dashboard_address": NOWHERE,
        "memory_limit": 0,  # Dask would look at this process; builds are children, and have limits of their own
        "workplace": workplace,
    }


class DaskEngine:
    """Scheduler and, unless it has no slots, one worker in this process; others may join.

    Args:
        workplace: Of the embedded worker; None where builds are for others alone.
        labels: Of the embedded worker.
        listen: `tls://HOST:PORT` where other workers may join; empty for none.
        security: Certificates for that.
    """

    def __init__(
        self,
        workplace: Workplace | None,
        labels: frozenset[str],
        *,
        listen: str = "",
        security: distributed.Security | None = None,
    ) -> None:
        dask.config.set(QUIET)
        self._workplace, self._futures, self._lock = workplace, dict[str, Any](), threading.Lock()
        self._ended: Ended = _ignore
        host, _, port = listen.removeprefix("tls://").rpartition(":")
        self._cluster = distributed.LocalCluster(
            n_workers=0,
            processes=False,
            dashboard_address=NOWHERE,
            protocol="tls://" if listen else "inproc://",
            security=security,
            silence_logs=logging.ERROR,
            scheduler_kwargs={"dashboard": False},
            host=host or None,
            scheduler_port=int(port) if listen else 0,
        )
        if workplace is not None:
            self._cluster.worker_spec = {0: self._spec(workplace, labels)}
            self._cluster.scale(1)
        self._client = distributed.Client(self._cluster, set_as_default=False)
        if workplace is not None:
            self._client.wait_for_workers(1, timeout=60)

    def _spec(self, workplace: Workplace, labels: frozenset[str]) -> dict[str, Any]:
        options = dict(self._cluster.new_spec["options"])
        options |= worker_options("embedded", labels, workplace)
        return {"cls": BuildWorker, "options": options}

    @property
    def address(self) -> str:
        """Where workers join."""
        return str(self._cluster.scheduler_address)

    def capacity(self) -> Sequence[WorkerFacts]:
        """The workers that are connected, those that are silent left out."""
        found = self._client.scheduler_info(n_workers=-1)["workers"]
        now = time.time()
        facts = [_facts(address, one) for address, one in found.items()]
        return [one for one in facts if now - one.seen < SILENT_S]

    def submit(self, worker: WorkerFacts, attempt: str, call: str) -> None:
        """Sends an attempt to a worker."""
        future = self._client.submit(
            work,
            call,
            key=attempt,
            workers=[worker.address],
            allow_other_workers=False,
            resources={SLOT: 1},
            retries=0,
            pure=False,
        )
        with self._lock:
            self._futures[attempt] = future
        future.add_done_callback(partial(self._done, attempt))

    def stop(self, attempt: str) -> None:
        """Takes an attempt back that has not begun."""
        with self._lock:
            future = self._futures.pop(attempt, None)
        if future is not None:
            future.cancel(force=True)

    def events(self, ended: Ended) -> None:
        """Names who is told of attempts that have ended."""
        self._ended = ended

    def close(self) -> None:
        """Gives up what runs: its children end, and nothing of it is reported."""
        if self._workplace is not None:
            self._workplace.stopping.set()
        self._ended = _ignore
        self._client.close(timeout=2)
        try:
            self._cluster.close(timeout=10)
        except TimeoutError:  # what still runs ends with this process
            log.warning("the engine did not end in time")

    def _done(self, attempt: str, future: Any) -> None:
        with self._lock:
            is_known = self._futures.pop(attempt, None) is not None
        if is_known:
            self._ended(attempt, "" if future.status == "finished" else _reason(future))


def _ignore(attempt: str, why: str) -> None:
    pass


def _reason(future: Any) -> str:
    if future.status != "error":
        return "its worker is gone"
    error = future.exception(timeout=1)
    return "its worker is gone" if isinstance(error, distributed.KilledWorker) else f"{type(error).__name__}: {error}"


def _facts(address: str, info: dict[str, Any]) -> WorkerFacts:
    resources = dict(info.get("resources") or {})
    slots = int(resources.pop(SLOT, 0))
    versions = [name.partition("==")[2] for name in resources if name.startswith("fleetc==")]
    labels = frozenset(name for name in resources if not name.startswith("fleetc=="))
    return WorkerFacts(
        name=str(info.get("name", address)),
        address=address,
        labels=labels,
        slots=slots,
        version=versions[0] if versions else "",
        seen=float(info.get("last_seen", 0.0)),
    )


def folder_of(data: Path) -> Path:
    """Where the embedded worker has its files."""
    return data / "worker"
