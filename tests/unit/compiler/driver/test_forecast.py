"""What is said of a build's time before it is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.cli.text import forecast_text
from compiler.driver.forecast import ROUGH_S, forecast
from compiler.plan import BuildOptions
from compiler.plan.jobs import plan_fleet
from compiler.store import Stage, Store
from tests.unit.compiler.driver.stages.test_any_batch import NET, SINGLE, write_fleet


def test_a_build_is_forecast_by_what_stages_took_and_roughly_where_none_is_known(tmp_path: Path) -> None:
    _, jobs, _ = plan_fleet(write_fleet(tmp_path, NET, {"single": SINGLE, "other": SINGLE}), BuildOptions())
    store = Store(tmp_path / "cache")
    rough = forecast(jobs, store, most=2)
    assert rough.seconds >= 5 * ROUGH_S and "no earlier build" in forecast_text(rough)
    store.obtain(Stage("compile", (("model", "a"),)), lambda folder: None)
    (taken,) = store.durations()["compile"]
    known = forecast(jobs, store, most=1)
    assert known.seconds == pytest.approx(2 * rough.seconds - 2 * (ROUGH_S - taken))
    assert "stages of earlier builds" in forecast_text(known)


def test_a_damaged_entry_has_no_duration(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.obtain(Stage("compile", (("model", "a"),)), lambda folder: None)
    for text in ("{", '{"stage": "compile"}'):  # the second is an older version's
        (entry.files.parent / "entry.json").write_text(text)
        assert store.durations() == {}
