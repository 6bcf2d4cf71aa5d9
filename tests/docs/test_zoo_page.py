"""The page of networks is that of its record."""

from __future__ import annotations

import json

from bench_zoo import PAGE, RECORD, page_text


def test_the_page_is_made_of_the_record() -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert PAGE.read_text("utf-8") == page_text(recorded), "stale: run scripts/bench_zoo.py --page"
