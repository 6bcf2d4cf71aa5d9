"""One adapter writes every noun of a build's files, and reads it back."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from compiler.artifact.adapter import parse, to_json
from compiler.artifact.manifest import read_manifest
from compiler.artifact.schema import BuildSettings, DeviceRow, DeviceStatus, Manifest, Score, Summary
from compiler.fleet import Range
from compiler.target import TargetPlan
from compiler.target.request import settings_of
from tests.unit.compiler.artifact.report.conftest import failure, manifest, saliency, searched, trial, write_dist


def delivered(tmp_path: Path, **changes: Any) -> Manifest:
    return read_manifest(write_dist(tmp_path, {"kiosk": manifest("kiosk", **changes)}) / "kiosk")


def test_a_manifest_that_is_written_and_read_is_the_same(tmp_path: Path) -> None:
    trials = [trial(1, "fp32"), trial(2, "int8", saliency=saliency(shown=[]), options={"observer": "mse"})]
    first = delivered(tmp_path, trials=trials, saliency=saliency())
    text = json.dumps(to_json(first), allow_nan=False)
    value = json.loads(text)
    value["artifact"]["root"] = str(first.artifact.root)
    assert parse(Manifest, value) == first


def test_the_folder_of_an_artifact_is_never_written_and_never_believed(tmp_path: Path) -> None:
    facts = manifest("kiosk")
    facts["artifact"]["root"] = "/etc"
    found = delivered(tmp_path, artifact=facts["artifact"])
    assert found.artifact.root == tmp_path / "kiosk"
    assert "root" not in to_json(found)["artifact"]


def test_keys_that_are_not_known_are_ignored_and_all_others_are_reported_at_once() -> None:
    assert parse(DeviceRow, {"status": "delivered", "manifest": "0", "colour": "red"}).manifest == "0"
    devices = {"a": {"status": "lost"}, "b": {"status": "delivered", "manifest": 3}}
    with pytest.raises(ValueError, match=r"model: Field required; devices\.a\.status: .*; devices\.b\.manifest: "):
        parse(Summary, {"fleet": "f", "fleetc": "1", "devices": devices})


def test_many_problems_are_counted() -> None:
    with pytest.raises(ValueError, match=r"and 13 more$"):
        parse(Manifest, {})


def test_what_json_has_no_number_for_is_null() -> None:
    assert to_json(Score("top-1", 90.0, math.nan, None, 10, {"a": math.inf}))["details"] == {"a": None}


@pytest.mark.parametrize(
    "row",
    [
        {"status": "failed"},
        {"status": "delivered", **{key: value for key, value in failure().items() if key == "error"}},
        {"status": "unreadable"},
    ],
)
def test_status_and_error_of_a_device_cannot_disagree(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a device has an error if it failed|status must be"):
        parse(DeviceRow, row)


def test_a_row_with_its_error_is_read() -> None:
    row = parse(DeviceRow, {**failure(), "report": searched()})
    assert row.status == DeviceStatus.FAILED and row.report and len(row.report.trials) == 2


def test_all_that_a_target_builds_by_comes_back_from_the_manifest() -> None:
    ranges = {"batch": Range(min=1, opt=2, max=4)}
    plan = TargetPlan("fp16", object(), ranges, 3, {"6" * 64: {"tile": 4}}, payload_bytes=1000)
    settings = settings_of(plan)
    assert parse(BuildSettings, json.loads(json.dumps(to_json(settings)))) == settings
    # what is not among the settings comes from the profile, or is a place on this machine
    names = {field.name for field in fields(BuildSettings)}
    assert names == {field.name for field in fields(TargetPlan)} - {"options", "cache_dir"}
    assert replace(plan, **{name: getattr(settings, name) for name in names}) == plan
