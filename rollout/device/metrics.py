"""What the device's `fleetc serve` counted since a build was switched to: requests, late ones, failed ones, gates."""

from __future__ import annotations

import math
import re
import urllib.request
from typing import Any

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)(?: \d+)?$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
TIMEOUT_S = 5.0

Sample = tuple[str, dict[str, str], float]


def read_counts(place: str) -> dict[str, Any]:
    """Sums of one exporter.

    Args:
        place: URL of `/metrics`, or a file that holds the same.

    Returns:
        requests, late (answered after their deadline, or refused because they would be), errors: since the exporter
        began; gates: name → limit and figure.

    Raises:
        OSError: It cannot be read.
    """
    samples = _samples(_read(place))
    outcomes = [(labels.get("outcome"), value) for name, labels, value in samples if name == "fleetc_requests_total"]
    counted = [(outcome, value) for outcome, value in outcomes if outcome != "invalid"]
    gates: dict[str, dict[str, float]] = {}
    for family, key in (("fleetc_gate_limit", "limit"), ("fleetc_gate_observed", "observed")):
        for name, labels, value in samples:
            if name == family:
                gates.setdefault(labels["gate"], {})[key] = value
    return {
        "requests": int(sum(value for _, value in counted)),
        "late": int(sum(value for outcome, value in counted if outcome in ("late", "shed"))),
        "errors": int(sum(value for outcome, value in counted if outcome == "error")),
        "gates": gates,
    }


def since(counts: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What came since; an exporter that was started again counts from zero."""
    keys = ("requests", "late", "errors")
    restarted = any(counts[key] < before.get(key, 0) for key in keys)
    return {**counts, **{key: counts[key] - (0 if restarted else before.get(key, 0)) for key in keys}}


def _read(place: str) -> str:
    if place.startswith(("http://", "https://")):
        with urllib.request.urlopen(place, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    with open(place, encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


def _samples(text: str) -> list[Sample]:
    """Prometheus' text format, as far as counters and gauges go."""
    samples = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match and not line.startswith("#"):
            value = float(match[3])
            if math.isfinite(value):
                samples.append((match[1], dict(LABEL.findall(match[2] or "")), value))
    return samples
