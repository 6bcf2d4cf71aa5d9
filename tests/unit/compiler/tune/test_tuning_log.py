"""The log and what is read out of it: nothing measured is lost, nothing wrong is used."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.artifact import Evidence
from compiler.tune import DeviceType, Tunable, TuningKey, TuningLog, TuningRecord, curves, schedule

BOARD = DeviceType("Cortex-A76", ("asimd", "asimddp"), 4, (64, 512, 2048))
KEY = TuningKey("w" * 64, "tvm", {"apache-tvm": "0.27"}, {"threads": "4"}, BOARD)
FAST = TuningRecord(KEY, "conv", {"tile": 2}, Evidence.DEVICE, 10.0, 0.5, 20, "2026-11-24T12:00:00Z")
KERNEL = Tunable("conv", KEY.workload, ({"tile": 1}, {"tile": 2}, {"tile": 3}))


def decided(*records: TuningRecord) -> tuple[str, object, str]:
    [one] = schedule([KERNEL], {KEY.workload: KEY}, records)
    return one.basis, one.choice["tile"], one.evidence


def told(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> str:
    """Warnings of a log that has a good line before and behind a bad one."""
    log = TuningLog(tmp_path)
    log.append(FAST)
    path = log.path(BOARD)
    with path.open("ab") as file:
        file.write(line)
    later = replace(FAST, choice={"tile": 3})
    with caplog.at_level(logging.WARNING, logger="fleetc.tune"):
        log.append(later)
        assert log.records() == (FAST, later)
        assert log.records() == (FAST, later)
    assert len(caplog.records) == 1
    return caplog.text


def test_a_torn_line_is_told_once_and_the_next_record_starts_a_line_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "line 2" in told(tmp_path, b'{"schema": 1, "ke', caplog)


def test_a_line_of_another_schema_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "its schema is 2, this fleetc reads 1" in told(tmp_path, b'{"schema": 2}\n', caplog)


def test_a_changed_figure_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = TuningLog(tmp_path / "other")
    log.append(FAST)
    value = json.loads(log.path(BOARD).read_text()) | {"median": 0.1}
    assert "its check does not fit" in told(tmp_path, json.dumps(value).encode() + b"\n", caplog)


def test_a_foreign_devices_record_in_a_devices_file_is_none_of_its_records(tmp_path: Path) -> None:
    log = TuningLog(tmp_path)
    foreign = replace(FAST, key=replace(KEY, device=replace(BOARD, model="Cortex-A72")))
    log.append(foreign)
    log.path(foreign.key.device).rename(log.path(BOARD))
    assert log.of(BOARD) == ()


def test_the_best_figure_of_this_very_key_decides() -> None:
    slow = replace(FAST, choice={"tile": 3}, median=12.0)
    assert decided(slow, FAST) == ("measured", 2, Evidence.DEVICE)


def test_times_decide_over_instruction_counts_whatever_the_numbers() -> None:
    counted = replace(FAST, choice={"tile": 3}, evidence=Evidence.EMULATOR, median=1.0)
    assert decided(counted, FAST) == ("measured", 2, Evidence.DEVICE)


def test_an_error_decides_nothing() -> None:
    assert decided(replace(FAST, error="it crashed", median=0.0)) == ("predicted", 1, Evidence.NONE)


def test_a_choice_that_no_longer_exists_is_not_used() -> None:
    assert decided(replace(FAST, choice={"tile": 9})) == ("predicted", 1, Evidence.NONE)


@pytest.mark.parametrize(
    ("other", "basis"),
    [
        (replace(KEY, toolchain={"apache-tvm": "0.26"}), "transferred"),
        (replace(KEY, device=replace(BOARD, caches_kib=(64, 256, None))), "transferred"),
        (replace(KEY, settings={"threads": "1"}), "transferred"),
        (replace(KEY, device=replace(BOARD, isa=("asimd",))), "predicted"),
        (replace(KEY, device=replace(BOARD, cores=8)), "predicted"),
        (replace(KEY, target="openvino"), "predicted"),
        (replace(KEY, workload="v" * 64), "predicted"),
    ],
)
def test_with_any_part_of_the_key_different_a_record_is_no_measurement(other: TuningKey, basis: str) -> None:
    found, tile, evidence = decided(replace(FAST, key=other))
    assert (found, evidence) == (basis, Evidence.NONE)
    assert tile == (2 if basis == "transferred" else 1)


def test_a_curve_holds_the_trials_of_this_device_in_order_with_gaps_where_they_failed() -> None:
    slow, failed = replace(FAST, choice={"tile": 1}, median=12.0), replace(FAST, choice={"tile": 3}, error="crash")
    elsewhere = replace(FAST, key=replace(KEY, toolchain={"apache-tvm": "0.26"}), median=1.0)
    counted = replace(FAST, evidence=Evidence.EMULATOR, median=5e6)
    [found] = curves([KERNEL], {KEY.workload: KEY}, [slow, failed, elsewhere, counted, FAST])
    assert (found.kernel, found.unit, found.evidence) == ("conv", "us", "measured-device")
    assert found.values == (12.0, None, 10.0)
    assert curves([KERNEL], {KEY.workload: KEY}, [elsewhere, failed]) == ()
