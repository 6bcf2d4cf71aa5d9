"""Whether mirroring slows clients down: p99 of the same requests, with and without a candidate in the shadow.

Rounds with and without take turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_serving import Server, make_body

from rollout.client import Client, read_control
from rollout.live import Mode, Request
from serving.builds import manifest_digest, read_builds

ROUNDS, REQUESTS, SHARE = 12, 400, 0.1
PAUSE_S = 0.004
"""Between two requests: the server is idle for about as long as it works."""


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
        times: dict[bool, list[float]] = {True: [], False: []}
        skipped = seen = 0
        for place in range(2 * ROUNDS):
            is_mirrored = place % 2 == 1
            if is_mirrored:
                client.begin(request)
            times[is_mirrored] += ask(server.port, body, head)
            if is_mirrored:
                report = client.stop()
                skipped, seen = skipped + report.skipped, seen + report.verdict.traffic.candidate
        p99 = {key: np.quantile(values, 0.99) for key, values in times.items()}
        p50 = {key: np.quantile(values, 0.5) for key, values in times.items()}
        return {
            "requests": len(times[True]),
            "mirrored": seen,
            "skipped": skipped,
            "p50_ms": [round(p50[False], 3), round(p50[True], 3)],
            "p99_ms": [round(p99[False], 3), round(p99[True], 3)],
            "p99_change_pct": round(100 * float(p99[True] / p99[False] - 1), 2),
        }
    finally:
        server.close()


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
