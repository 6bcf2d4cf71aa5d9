"""Two builds side by side: what differs, and what explains it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compiler.artifact.diff import Change, compare_builds
from compiler.artifact.diff.facts import GIVEN, MEASURED, TUNED, UNKNOWN
from compiler.cli.text_changes import changes_text
from compiler.errors import ArtifactError
from tests.unit.compiler.artifact.report.conftest import (
    MIB,
    competitor,
    failure,
    gate,
    layer,
    manifest,
    saliency,
    searched,
    trial,
    write_dist,
)

LATENCY = "latency.fixed"


def compared(first: Path, second: Path) -> dict[str, Change]:
    return {change.name: change for change in compare_builds(first, second)}


def two(tmp_path: Path, before: Mapping[str, Any], after: Mapping[str, Any], p50_ms: float = 4.0) -> dict[str, Change]:
    """The changes between two builds of one device."""
    first = write_dist(tmp_path / "first", {"kiosk": manifest("kiosk", **before)})
    return compared(first, write_dist(tmp_path / "second", {"kiosk": manifest("kiosk", **after)}, p50_ms=p50_ms))


def tightened(**changes: Any) -> dict[str, Any]:
    """The facts of a search under a limit on accuracy that the int8 trial no longer holds."""
    why = "accuracy failed: 1 point lost, limit at most 0.2"
    refused = trial(2, "int8", status="refused", why=why, gates=[gate(limit=0.2, passed=False)])
    plan = {**searched()["plan"], "gates": {"limits": {"accuracy_drop_pct": 0.2, "memory_reduction_pct": 40.0}}}
    decision = {"precision": "fp16", "trial": 3, "reason": "the search chose it"}
    return {"plan": plan, "trials": [trial(1, "fp32"), refused, trial(3, "fp16")], "decision": decision, **changes}


def newer_tools() -> dict[str, Any]:
    return {**manifest("kiosk")["artifact"], "tools": {"onnxruntime": "1.33.0"}}


def test_a_race_that_came_out_otherwise_explains_the_target_and_the_files_of_the_other(tmp_path: Path) -> None:
    targets = [{"target": "openvino"}, {"target": "reference"}]

    def won(target: str, speedup: float) -> dict[str, Any]:
        standings = [competitor("openvino", "beaten"), competitor("reference", "won", speedup)]
        trials = [trial(1, "fp32", target="openvino"), trial(2, "int8", target=target)]
        return {
            "plan": {**searched()["plan"], "target": target, "targets": targets},
            "contest": standings,
            "trials": trials,
        }

    files = {"payload/model.xml": {"sha256": "5" * 64, "bytes": 20 * MIB}}
    found = two(tmp_path, won("openvino", 0.9), {**won("reference", 4.0), "files": files})
    assert found["race.reference"].note == MEASURED
    assert found["target"].because[0] == "race.reference"
    assert found["size"].because == ("target",)


def test_the_same_build_twice_is_no_difference(tmp_path: Path) -> None:
    dist = write_dist(tmp_path, {"kiosk": manifest("kiosk")}, {"refused": {**failure(), "report": searched()}})
    assert compare_builds(dist, dist) == ()
    assert changes_text(()) == "no difference"


def test_a_changed_limit_explains_the_verdict_the_precision_and_the_size_in_turn(tmp_path: Path) -> None:
    files = {"payload/model.onnx": {"sha256": "5" * 64, "bytes": 20 * MIB}}
    found = two(tmp_path, {}, tightened(files=files, layers=[layer("first", precision="fp16")]))
    assert found["limit.accuracy_drop_pct"].because == ()
    assert found["trial.int8"].because == ("limit.accuracy_drop_pct",)
    assert set(found["precision"].because) == {"trial.int8", "trial.fp16"}
    assert found["size"].because == ("precision",)
    assert (found["size"].before, found["size"].after) == (10 * MIB, 20 * MIB)
    assert found["layer.first"].because == ("precision",)


def test_a_time_that_changed_while_nothing_else_did_is_called_noise(tmp_path: Path) -> None:
    found = two(tmp_path, {}, {}, p50_ms=5.0)
    assert list(found) == [LATENCY]
    assert (found[LATENCY].because, found[LATENCY].note) == ((), MEASURED)


def test_a_time_of_other_bytes_is_explained_by_what_changed_the_bytes(tmp_path: Path) -> None:
    files = {"payload/model.onnx": {"sha256": "5" * 64, "bytes": 10 * MIB}}
    found = two(tmp_path, {}, {"files": files, "artifact": newer_tools()}, p50_ms=5.0)
    assert found[LATENCY].because == found["files"].because == ("tool.onnxruntime",)


def test_bytes_that_nothing_explains_are_said_to_be_unexplained(tmp_path: Path) -> None:
    files = {"payload/model.onnx": {"sha256": "5" * 64, "bytes": 10 * MIB}}
    found = two(tmp_path, {}, {"files": files})
    assert list(found) == ["files"]
    assert found["files"].note == UNKNOWN
    assert UNKNOWN in changes_text(tuple(found.values()))


def test_the_saliency_of_a_trial_is_compared_and_explains_why_it_is_refused(tmp_path: Path) -> None:
    limit = {"saliency_correlation_min": 0.9}
    plan = {**searched()["plan"], "gates": {"limits": limit}}
    judged = {"limit": 0.9, "unit": "correlation"}
    high, low = saliency(shown=[]), saliency(correlation=0.5, lowest_correlation=0.4, shown=[])
    passed = trial(2, "int8", saliency=high, gates=[gate("saliency", value=0.95, **judged)])
    failed = gate("saliency", value=0.5, passed=False, **judged)
    refused = trial(2, "int8", saliency=low, gates=[failed], status="refused", why="saliency failed")
    before = {"plan": plan, "trials": [trial(1, "fp32"), passed]}
    found = two(tmp_path, before, {"plan": plan, "trials": [trial(1, "fp32"), refused]})
    assert found["trial.int8.saliency"].now == "correlation 0.500"
    assert found["trial.int8"].because == ("trial.int8.saliency",)


def test_another_kernel_with_nothing_else_changed_is_the_tuning_log_s(tmp_path: Path) -> None:
    kernel = {"kernel": "conv 3x3", "workload": "a" * 64, "count": 2, "basis": "measured", "evidence": "measured-host"}
    tuned = [{**kernel, "choice": {"tile": size}, "reason": "a record"} for size in (4, 8)]
    found = two(tmp_path, {"tuning": tuned[:1]}, {"tuning": tuned[1:]})
    assert found["kernel.conv 3x3"].note == TUNED
    assert found["kernel.conv 3x3"].now == "tile=8 (measured)"


def test_a_gate_that_fails_for_its_limit_is_told_from_one_whose_figure_moved(tmp_path: Path) -> None:
    plan = {**searched()["plan"], "gates": {"limits": {"accuracy_drop_pct": 0.2, "memory_reduction_pct": 40.0}}}
    stricter = {"plan": plan, "gates": [gate(limit=0.2, passed=False)]}
    assert two(tmp_path / "a", {}, stricter)["gate.accuracy"].because == ("limit.accuracy_drop_pct",)
    lost = trial(2, "int8")
    lost["accuracy"]["drop"] |= {"drop_pct": 3.0}
    worse = {"trials": [trial(1, "fp32"), lost], "gates": [gate(value=3.0, passed=False)]}
    assert two(tmp_path / "b", {}, worse)["gate.accuracy"].because == ("accuracy",)


def test_an_accuracy_that_moved_with_the_layers_kept_in_float_names_them(tmp_path: Path) -> None:
    mixed = trial(2, "int8", kept_float={"conv": "reverted"}, options={"observer": "mse"})
    mixed["accuracy"]["drop"] |= {"drop_pct": 0.1}
    plain = trial(2, "int8", options={"observer": "mse"})
    found = two(tmp_path, {"trials": [trial(1, "fp32"), plain]}, {"trials": [trial(1, "fp32"), mixed]})
    assert found["trial.int8.variant"].now == "1 layers in float, observer mse"
    assert found["trial.int8.accuracy"].because == ("trial.int8.variant",)


def test_a_device_that_fails_now_is_told_without_a_list_of_what_it_lacks(tmp_path: Path) -> None:
    first = write_dist(tmp_path / "first", {"kiosk": manifest("kiosk")})
    none = {"precision": "", "trial": None, "reason": "none passes"}
    report = searched(**{**tightened(decision=none), "gates": [], "layers": []})
    report["trials"] = report["trials"][:2]
    found = compared(first, write_dist(tmp_path / "second", {}, {"kiosk": {**failure(), "report": report}}))
    assert found["status"].now == "failed: no candidate passes"
    assert found["status"].because == ("precision",)
    assert found["precision"].because == ("trial.int8",)
    assert not {"size", "samples", "layer.first", "files"} & set(found)


def test_devices_that_are_in_one_build_only_are_named(tmp_path: Path) -> None:
    first = write_dist(tmp_path / "first", {"kiosk": manifest("kiosk")})
    second = write_dist(tmp_path / "second", {"camera": manifest("camera")})
    found = compare_builds(first, second)
    assert [(one.device, one.was, one.now) for one in found] == [
        ("camera", "absent", "new"),
        ("kiosk", "there", "absent"),
    ]


def test_text_says_once_what_changed_for_every_device_and_folds_layers(tmp_path: Path) -> None:
    newer = {"artifact": newer_tools()}
    layers = [layer(f"layer{index}") for index in range(5)]
    halves = [layer(f"layer{index}", precision="fp16") for index in range(5)]
    names = ("kiosk", "camera")
    first = write_dist(tmp_path / "first", {name: manifest(name, layers=layers) for name in names})
    second = write_dist(tmp_path / "second", {name: manifest(name, layers=halves, **newer) for name in names})
    text = changes_text(compare_builds(first, second))
    assert text.count("    tool.onnxruntime: 1.32.0 → 1.33.0") == 1
    assert text.startswith("every device\n  tools\n")
    assert text.count("5 layers (layer0, layer1, layer2 and 2 more): int8 → fp16") == 2
    assert text.count("because tool.onnxruntime 1.32.0 → 1.33.0") == 2
    assert max(map(len, text.splitlines())) <= 100


def test_two_artifacts_of_different_names_can_be_compared(tmp_path: Path) -> None:
    facts = {name: manifest(name) for name in ("kiosk", "camera")}
    facts["camera"]["inputs"]["profile"]["facts"] = {"cpu": {"cores": 8}}
    dist = write_dist(tmp_path, facts)
    (change,) = compare_builds(dist / "kiosk", dist / "camera")
    assert (change.name, change.after, change.note) == ("profile.cpu.cores", 8, GIVEN)


def test_what_is_not_as_delivered_is_refused(tmp_path: Path) -> None:
    first = write_dist(tmp_path / "first", {"kiosk": manifest("kiosk"), "camera": manifest("camera")})
    second = write_dist(tmp_path / "second", {"kiosk": manifest("kiosk"), "camera": manifest("camera")})
    for name in ("kiosk", "camera"):
        path = second / name / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "fleetc": "9"}))
    with pytest.raises(ArtifactError, match="2 problems"):
        compare_builds(first, second)
    with pytest.raises(ArtifactError, match="whole build"):
        compare_builds(first, first / "kiosk")
    (second / "build.json").unlink()
    with pytest.raises(ArtifactError, match="has not come to its end"):
        compare_builds(first, second)
