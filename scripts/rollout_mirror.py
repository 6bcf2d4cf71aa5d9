"""Whether mirroring slows clients down: p99 of the same requests, with and without a candidate in the shadow.

Each round with a candidate stands between two without. It is compared with their mean, and the two with each other,
which shows how far the machine alone moves the figure. One disturbed round does not decide.
"""

from __future__ import annotations

import http.client
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from serving_load import Server, make_body

from rollout.client import Client, read_control
from rollout.live import Mode, Request
from serving.builds import manifest_digest, read_builds

ROUNDS, REQUESTS, SHARE = 25, 400, 0.1
PAUSE_S = 0.004
"""Between two requests: the server is idle for about as long as it works."""

SETTLE_S = 1.0
"""Before each round: to load a candidate and to end its process is no part of mirroring."""


def mirrored(artifact: Path, candidate: Path) -> dict[str, Any]:
    """Latency of one client, milliseconds.

    Args:
        artifact: The build that answers.
        candidate: The build that sees a tenth of the requests.
    """
    served = read_builds([artifact])
    body, head = make_body(served)
    server = Server(artifact, 60.0)
    try:
        client = Client(read_control(server.port), None)
        request = Request(str(candidate.absolute()), manifest_digest(artifact), Mode.SHADOW, SHARE)
        ask(server.port, body, head)  # the first requests of a server are slower
        rounds: list[list[float]] = []
        skipped = seen = 0
        for place in range(2 * ROUNDS + 1):
            is_mirrored = place % 2 == 1
            if is_mirrored:
                client.begin(request)
            time.sleep(SETTLE_S)
            rounds.append(ask(server.port, body, head))
            if is_mirrored:
                report = client.stop()
                skipped, seen = skipped + report.skipped, seen + report.verdict.traffic.candidate
        return {
            "requests": ROUNDS * REQUESTS,
            "mirrored": seen,
            "skipped": skipped,
            "load_average": round(os.getloadavg()[1], 1),
            **{name: compared(rounds, share) for name, share in (("p50", 0.5), ("p99", 0.99))},
        }
    finally:
        server.close()


def compared(rounds: list[list[float]], share: float) -> dict[str, Any]:
    """A quantile without and with mirroring, of all requests, and by how much it changes from round to round."""
    each = np.array([np.quantile(times, share) for times in rounds])
    before, mirrored, after = each[:-1:2], each[1::2], each[2::2]
    changes = 100 * (2 * mirrored / (before + after) - 1)
    return {
        "without_ms": round(float(np.quantile(np.concatenate(rounds[::2]), share)), 3),
        "with_ms": round(float(np.quantile(np.concatenate(rounds[1::2]), share)), 3),
        "median_change_pct": round(float(np.median(changes)), 2),
        "quartiles_pct": [round(float(end), 1) for end in np.quantile(changes, (0.25, 0.75))],
        "median_pct_between_rounds_without": round(float(np.median(np.abs(100 * (after / before - 1)))), 2),
    }


def ask(port: int, body: bytes, head: str) -> list[float]:
    """Requests one after another over one connection."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port), []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        connection.request("POST", "/v2/models/m/infer", body, {"Inference-Header-Content-Length": head})
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.client.OK:
            raise SystemExit(f"status {answer.status}")
        times.append(1e3 * (time.perf_counter() - started))
        time.sleep(PAUSE_S)
    connection.close()
    return times
