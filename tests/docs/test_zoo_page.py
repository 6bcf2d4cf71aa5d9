"""The page of networks out of packages is that of the recorded run."""

from __future__ import annotations

import json

from bench_zoo import PAGE, RECORD, page_text


def test_the_page_is_what_was_recorded() -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert PAGE.read_text("utf-8") == page_text(recorded), "stale: run scripts/bench_zoo.py --page"
    assert any(network["targets"] for network in recorded["networks"])
