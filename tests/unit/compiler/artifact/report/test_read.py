from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.artifact.report import read_build, write_report
from compiler.errors import ArtifactError
from tests.unit.compiler.artifact.report.conftest import manifest, write_dist


def test_a_build_is_read_with_its_failed_devices(dist: Path) -> None:
    build = read_build(dist)
    found = {device.name: device.status for device in build.devices}
    assert found == {"kiosk": "delivered", "refused": "failed", "broken": "failed"}
    assert not build.problems
    refused = next(device for device in build.devices if device.name == "refused")
    assert refused.searched is not None and len(refused.searched.trials) == 2


def test_a_changed_manifest_is_a_problem_and_its_figures_are_not_shown(dist: Path) -> None:
    path = dist / "kiosk" / "manifest.json"
    path.write_text(path.read_text().replace("TAR@FAR=0.001", "TAR@FAR=0.1"))
    build = read_build(dist)
    assert "not the one that build.json names" in str(build.problems[0])
    assert next(device for device in build.devices if device.name == "kiosk").manifest is None
    assert "TAR@FAR=0.1" not in write_report(build).read_text()


def test_a_deferred_device_that_was_finished_since_is_read(tmp_path: Path) -> None:
    dist = write_dist(tmp_path, {"board": manifest("board")})
    summary = json.loads((dist / "build.json").read_text())
    summary["devices"]["board"] = {"status": "deferred", "manifest": "5" * 64}
    (dist / "build.json").write_text(json.dumps(summary))
    assert read_build(dist).devices[0].status == "finished"
    summary["devices"]["board"]["status"] = "delivered"
    (dist / "build.json").write_text(json.dumps(summary))
    assert read_build(dist).problems


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, "schema 1, this fleetc reads 2"),
        ({"trials": [{"number": 1}]}, "trials.0.purpose"),
        ({"gates": "all good"}, "gates"),
    ],
)
def test_a_manifest_of_another_shape_is_named_with_its_key(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    build = read_build(write_dist(tmp_path, {"one": manifest("one", **change), "two": manifest("two")}))
    assert len(build.problems) == 1 and words in str(build.problems[0])
    assert [device.status for device in build.devices] == ["unreadable", "delivered"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "no mapping"),
        ('{"schema": 9}', "schema 9"),
        ('{"schema": 2}', "missing or invalid keys"),
        ('{"schema": 2, "fleet": "f", "fleetc": "1", "model": "0", "devices": {"a": {"status": "lost"}}}', "status"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_build_json_is_refused(dist: Path, text: str, words: str) -> None:
    (dist / "build.json").write_text(text)
    with pytest.raises(ArtifactError, match=words):
        read_build(dist)


def test_what_is_no_build_is_told_apart(dist: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="folder of one device"):
        read_build(dist / "kiosk")
    with pytest.raises(ArtifactError, match="no such folder"):
        read_build(tmp_path / "absent")
    (dist / "build.json").unlink()
    with pytest.raises(ArtifactError, match="has not come to its end"):
        read_build(dist)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no build of fleetc"):
        read_build(tmp_path / "empty")


def test_a_device_outside_the_folder_is_not_read(dist: Path) -> None:
    text = (dist / "build.json").read_text().replace('"kiosk"', '"../dist/kiosk"')
    (dist / "build.json").write_text(text)
    assert "outside the folder" in str(read_build(dist).problems[0])


def test_half_written_measurements_are_a_problem(dist: Path) -> None:
    (dist / "kiosk" / "measurements.json").write_text('{"latency": [{"p50')
    assert "no JSON" in str(read_build(dist).problems[0])
    (dist / "kiosk" / "measurements.json").unlink()
    assert not read_build(dist).problems


def test_every_folder_that_is_not_whole_is_a_problem_of_its_device_alone(tmp_path: Path) -> None:
    names = ("whole", "empty", "half", "newer", "foreign", "odd")
    dist = write_dist(tmp_path, {name: manifest(name) for name in names})
    (dist / "empty" / "manifest.json").unlink()
    (dist / "half" / "manifest.json").write_text('{"schema": 2, "dev')
    for name, value in (("newer", {"schema": 3}), ("foreign", {"schema": 2})):
        (dist / name / "measurements.json").write_text(json.dumps(value))
    (dist / "odd" / "measurements.json").write_text("[1]")
    build = read_build(dist)
    assert [one.name for one in build.devices if one.status == "delivered"] == ["whole"]
    said = [str(problem) for problem in build.problems]
    words = ("no readable manifest.json", "no JSON", "schema 3, this fleetc reads 2", "evidence", "no mapping")
    assert all(any(word in one for one in said) for word in words), said
    assert all(problem.remedy for problem in build.problems)


@pytest.mark.parametrize("name", ["../whole", "/etc", "whole/../whole", ".", ""])
def test_a_device_that_is_no_folder_of_the_build_is_not_read(tmp_path: Path, name: str) -> None:
    dist = write_dist(tmp_path, {"whole": manifest("whole")})
    summary = json.loads((dist / "build.json").read_text())
    summary["devices"] = {name: summary["devices"]["whole"]}
    (dist / "build.json").write_text(json.dumps(summary))
    (problem,) = read_build(dist).problems
    assert "outside the folder" in str(problem)
