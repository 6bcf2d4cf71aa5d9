"""What Prometheus reads: counts from the tables when it asks, durations and cache hits as they are reported."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from server.engine import BuildEngine
from server.schema import FINAL, DeviceState
from server.tables import Database, attempts, devices

BUCKETS_S = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200)
"""From a stage that the cache has to a search of hours."""


@dataclass
class Metrics:
    """The figures of one server.

    Args:
        database: The tables.
        engine: Who knows the workers.
    """

    database: Database
    engine: BuildEngine
    _registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._stages = Histogram(
            "fleetc_stage_seconds",
            "Wall time of a stage of a build, stages inside it included.",
            ["stage"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._cache = Counter(
            "fleetc_cache_stages",
            "Stages of delivered builds, by whether the cache had them.",
            ["source"],
            registry=self._registry,
        )
        self._registry.register(_Tables(self.database, self.engine))

    def note_events(self, payloads: Iterable[dict[str, Any]]) -> None:
        """Takes what an attempt reports."""
        for payload in payloads:
            if payload["event"] == "stage-ended":
                self._stages.labels(str(payload["stage"])).observe(float(payload["seconds"]))

    def note_stages(self, measurements: dict[str, Any]) -> None:
        """Takes what a delivered build says of its stages."""
        for stage in measurements.get("stages", ()):
            self._cache.labels("cache" if stage.get("from_store") else "made").inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _Tables(Collector):
    """Counts that the tables have."""

    def __init__(self, database: Database, engine: BuildEngine) -> None:
        self._database, self._engine = database, engine

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: it would read the tables while the server starts."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The figures of this moment."""
        with self._database.reading() as connection:
            states = _counts(connection, devices.c.state)
            ended = _counts(connection, attempts.c.state)
        queued = GaugeMetricFamily("fleetc_queue_devices", "Device classes that are not finished.", labels=["state"])
        for state in DeviceState:
            if state not in FINAL:
                queued.add_metric([state], states[state])
        yield queued
        finished = CounterMetricFamily("fleetc_devices_finished", "Device classes that are finished.", labels=["state"])
        for state in sorted(FINAL):
            finished.add_metric([state], states[state])
        yield finished
        tried = CounterMetricFamily(
            "fleetc_attempts", "Attempts that have begun, by what became of them.", labels=["state"]
        )
        for name in ("running", "ended", "given-up"):
            tried.add_metric([name], ended[name])
        yield tried
        workers = self._engine.capacity()
        yield GaugeMetricFamily("fleetc_workers", "Workers that are connected.", value=len(workers))
        slots = sum(worker.slots for worker in workers)
        yield GaugeMetricFamily("fleetc_worker_slots", "Builds that they run at a time.", value=slots)


def _counts(connection: Any, column: Any) -> Count[str]:
    rows = connection.execute(select(column, func.count()).group_by(column)).all()
    return Count({str(name): int(count) for name, count in rows})
