"""How often a key may ask."""

from __future__ import annotations

from pathlib import Path

import urllib3

from server.connection import Connection
from server.rate import BURST_S, RateLimit
from tests.server.conftest import serving


def test_a_key_may_ask_so_often_on_average_and_waits_as_long_as_it_is_told() -> None:
    limit = RateLimit(2.0)
    assert [limit.take("a", now=0.0) for _ in range(int(2 * BURST_S))] == [0.0] * 20
    assert limit.take("a", now=0.0) == 0.5
    assert limit.take("b", now=0.0) == 0.0
    assert limit.take("a", now=0.25) == 0.25
    assert limit.take("a", now=0.5) == 0.0
    assert [limit.take("a", now=1000.0) for _ in range(21)] == [0.0] * 20 + [0.5]  # no more than a burst is saved up


def test_without_a_bound_nobody_waits() -> None:
    assert not any(RateLimit(0).take("a", now=0.0) for _ in range(1000))


def test_a_key_that_asks_too_often_is_told_when_to_ask_again_and_the_client_does(tmp_path: Path, site: Path) -> None:
    server = serving(tmp_path / "own", site, "--rate", "0.5", "--slots", "0").start()
    try:
        headers = {"Authorization": f"Bearer {server.key}"}
        answers = [urllib3.request("GET", f"{server.url}/v1/jobs", headers=headers, retries=False) for _ in range(12)]
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["Retry-After"] in ("1", "2")
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert urllib3.request("GET", f"{server.url}/healthz").status == 200
        patient = Connection(server.url, server.key, patience_s=10)
        assert patient.get("/v1/jobs") == []
    finally:
        server.kill()
