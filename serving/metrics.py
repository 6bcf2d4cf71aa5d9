"""What Prometheus reads: one family per question, base units, histograms that can be added up over hosts.

A histogram of latency has a bucket at each limit that the model is judged by, so that the share above a gate's limit
is exact and not interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
RATIO_BUCKETS = (0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)


class Outcome(StrEnum):
    """What became of a request."""

    OK = "ok"
    LATE = "late"
    SHED = "shed"
    INVALID = "invalid"
    ERROR = "error"


class Metrics:
    """The families of one server.

    Args:
        limits_s: Latency limits in seconds that get a bucket of their own.
    """

    def __init__(self, limits_s: Iterable[float] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        latency = sorted({*LATENCY_BUCKETS_S, *limits_s})
        self.requests = Counter(
            "fleetc_requests",
            "Requests by what became of them; late: answered after the deadline, shed: refused with 503.",
            ["model", "variant", "outcome"],
            registry=registry,
        )
        self.duration = _histogram(registry, "request_duration_seconds", "From arrival to the answer.", latency)
        self.queue = _histogram(registry, "queue_duration_seconds", "From arrival to the start of the run.", latency)
        self.batch_size = _histogram(registry, "batch_size", "Items that were run together.", BATCH_BUCKETS)
        self.prediction = _histogram(
            registry, "prediction_ratio", "Seconds that a run took, over those that were predicted.", RATIO_BUCKETS
        )
        self.pending = _gauge(registry, "pending_requests", "Requests that wait or are run.", ["model"])
        self.rung = _gauge(registry, "rung", "1 for the build that is in use.", ["model", "variant"])
        self.available = _gauge(registry, "rung_available", "1 for a build that may be used.", ["model", "variant"])
        self.accuracy = _gauge(
            registry, "rung_accuracy_ratio", "Accuracy over that of the float model.", ["model", "variant"]
        )
        self.memory = _gauge(
            registry, "build_resident_memory_bytes", "Resident memory of a build's process.", ["model", "variant"]
        )
        self.switches = Counter(
            "fleetc_switches",
            "Changes of the build in use, by reason.",
            ["model", "from", "to", "reason"],
            registry=registry,
        )
        self.build_info = _gauge(
            registry,
            "build_info",
            "1 for each build that is served.",
            ["model", "variant", "device", "profile", "precision", "manifest_sha256", "runtime"],
        )
        self.gate_limit = _gauge(
            registry,
            "gate_limit",
            "Limit of a gate when the build was made, in its unit.",
            ["model", "variant", "gate"],
        )
        self.gate_observed = _gauge(
            registry,
            "gate_observed",
            "Figure that a gate judged when the build was made, in its unit.",
            ["model", "variant", "gate"],
        )
        self.out_of_range = _gauge(
            registry,
            "input_out_of_range_ratio",
            "Share of an input's elements, in the last requests, outside of the calibration data's range.",
            ["model", "input"],
        )
        self.input_shift = _gauge(
            registry,
            "input_shift",
            "Population stability index of an input's statistic against the calibration data.",
            ["model", "input", "statistic"],
        )
        self.output_shift = _gauge(
            registry,
            "output_shift",
            "Population stability index of an output's statistic against the float model on the calibration data.",
            ["model", "output", "statistic"],
        )
        self.experiment = _gauge(
            registry,
            "experiment_state",
            "1 for the state of the experiment with a candidate.",
            ["model", "candidate", "state"],
        )
        self.agreement = _gauge(
            registry,
            "shadow_agreement_ratio",
            "Share of the mirrored requests that the candidate decides as the build in use.",
            ["model", "baseline", "candidate"],
        )
        self.slo = _gauge(registry, "slo_seconds", "Time that a request has where it says nothing.", ["model"])

    @property
    def of_builds(self) -> tuple[Gauge, ...]:
        """Families that speak of one version's builds."""
        facts = (self.build_info, self.gate_limit, self.gate_observed, self.accuracy)
        return (*facts, self.rung, self.available, self.memory, self.out_of_range, self.input_shift, self.output_shift)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


def _gauge(registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> Gauge:
    return Gauge(f"fleetc_{name}", text, list(labels), registry=registry)


def _histogram(registry: CollectorRegistry, name: str, text: str, buckets: Sequence[float]) -> Histogram:
    return Histogram(f"fleetc_{name}", text, ["model"], registry=registry, buckets=tuple(buckets))
