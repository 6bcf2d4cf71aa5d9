"""The page of ONNX's node cases says what the targets claim now."""

from __future__ import annotations

from table_nodes import PAGE, PROFILES, page_text


def test_the_page_is_what_the_targets_claim_and_the_known_gaps_say() -> None:
    text, reasons = page_text()
    assert reasons > len(PROFILES)
    assert PAGE.read_text("utf-8") == text, "stale: run scripts/table_nodes.py"
