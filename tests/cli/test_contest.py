"""Several targets for one device, by the real command: raced, tried, sorted out, and said in plan and manifest.

The third-party target `moody` computes with ONNX's evaluator, which takes many times as long as ONNX Runtime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, Place, make_place, write_model

LSTM = "(float[8, 1, 16] x) => (float[8, 1, 1, 16] y) { y = LSTM <hidden_size = 16> (x, w, r) }"
"""Eight short steps, where OpenVINO spends its time on meeting between them: ONNX Runtime takes a tenth of it."""

WIDE = "(float[batch, 96] x) => (float[batch, 96] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }"


def profile(place: Place, name: str, target: str, also: object, **options: object) -> str:
    value = {"schema": 1, "name": name, "target": target, "target_options": options, "also": also}
    (place.root / f"{name}.yaml").write_text(json.dumps(value), encoding="utf-8")
    return f"./{name}.yaml"


def standings(manifest: Any) -> dict[str, str]:
    return {competitor["target"]: competitor["standing"] for competitor in manifest["contest"]}


def why(manifest: Any, target: str) -> str:
    return next(str(competitor["why"]) for competitor in manifest["contest"] if competitor["target"] == target)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory, site: Path) -> tuple[Place, Outcome]:
    """A recurrent model: a device whose second target is the faster one, and one whose first target refuses it."""
    place = make_place(tmp_path_factory.mktemp("contest"), site, repeat=1)
    write_model(place.root / "model.onnx", LSTM, w=(1, 64, 16), r=(1, 64, 16))
    refuses = profile(place, "refuses", "moody", ["ghost", "onnxruntime"], build="refuse")
    place.write_fleet({"kiosk": {"profile": "intel-n100", "targets": ["openvino", "onnxruntime"]}, "board": refuses})
    # a race of the least number of pairs has an interval that one delayed block spoils
    return place, place.build("--json", "--no-report", "--race-seconds", "3")


@pytest.mark.slow
def test_a_small_recurrent_model_goes_to_onnx_runtime_and_the_manifest_says_why(
    recurrent: tuple[Place, Outcome],
) -> None:
    place, outcome = recurrent
    assert outcome.code == 0, outcome.err
    manifest = place.manifest("kiosk")
    assert manifest["artifact"]["target"] == manifest["plan"]["target"] == "onnxruntime"
    assert standings(manifest) == {"openvino": "beaten", "onnxruntime": "won"}
    race = manifest["contest"][1]["race"]
    assert race["evidence"] == "measured-host" and race["speedup"] > 3 and race["low"] > 1, race
    decision = manifest["plan"]["decisions"]["target"]
    assert decision["value"] == "onnxruntime" and "× the speed of openvino (measured-host" in decision["reason"]
    assert [trial["target"] for trial in manifest["trials"]] == ["openvino", "onnxruntime"]
    assert "  onnxruntime won: " in place.run("inspect", place.dist / "kiosk").out


def test_a_target_that_refuses_the_model_leaves_it_to_the_others(recurrent: tuple[Place, Outcome]) -> None:
    place, _ = recurrent
    manifest = place.manifest("board")
    assert manifest["artifact"]["target"] == "onnxruntime"
    assert standings(manifest) == {"moody": "failed", "ghost": "failed", "onnxruntime": "won"}
    assert "refuses the model" in why(manifest, "moody")
    facts = manifest["inputs"]["profile"]["facts"]
    assert (facts["target"], list(facts["also"])) == ("moody", ["ghost", "onnxruntime"]), "the profile as it was given"


def test_a_target_that_is_not_installed_is_named_by_plan_and_manifest(recurrent: tuple[Place, Outcome]) -> None:
    place, _ = recurrent
    assert why(place.manifest("board"), "ghost").startswith("no target 'ghost' is installed")
    again = place.build("-d", "board", "--no-report")
    assert "board: ghost did not compete: no target 'ghost' is installed\n" in again.out
    assert "not ghost: no target 'ghost' is installed" in place.run("plan", place.fleet, "--device", "board").out


def test_the_plan_names_the_targets_and_their_candidates(recurrent: tuple[Place, Outcome]) -> None:
    place, _ = recurrent
    out = place.run("plan", place.fleet, "--device", "kiosk").out
    lines = [line for line in out.splitlines() if line.split()[:1] in (["kiosk:"], ["target"], ["onnxruntime"])]
    kiosk, target, other = lines
    assert kiosk == "kiosk: intel-n100 through target 'openvino' or 'onnxruntime'"
    assert target == (
        "  target            openvino, onnxruntime: they compete: their builds are raced, and the fastest is "
        "delivered; where nothing can be raced here, the first that can be built"
    )
    assert other.startswith("  onnxruntime       auto takes what the target puts first: the model's own precision")
    assert "; toolchain onnxruntime 1." in other


def test_targets_of_the_command_line_are_those_of_the_build(recurrent: tuple[Place, Outcome]) -> None:
    place, _ = recurrent
    plan = ("plan", place.fleet, "--device", "kiosk", "--target")
    outcome = place.run(*plan, "ghost", "--target", "phantom")
    assert outcome.code == 4 and "'ghost'" in outcome.err and "'phantom'" in outcome.err
    (facts,) = place.run(*plan, "reference", "--json").json["plans"]
    assert (facts["target"], facts["targets"]) == ("reference", [])


def test_half_a_build_needs_one_target(recurrent: tuple[Place, Outcome]) -> None:
    place, _ = recurrent
    outcome = place.build("--to", "specialize", "--device", "kiosk")
    assert outcome.code == 2 and "the target (openvino, onnxruntime) is decided by builds of each" in outcome.err


@pytest.mark.slow
def test_where_nothing_of_the_faster_target_passes_the_slower_one_is_tried_after_all(place: Place) -> None:
    write_model(place.root / "model.onnx", WIDE, w1=(96, 96), w2=(96, 96))
    place.write_fleet({"one": profile(place, "one", "moody", ["reference"])}, limits={"memory_reduction_pct": 40})
    assert "their float32 builds are raced first" in place.run("plan", place.fleet).out
    assert place.build("--json").code == 0
    manifest = place.manifest("one")
    assert standings(manifest) == {"moody": "won", "reference": "beaten"}
    statuses = {f"{trial['target']} {trial['precision']}": trial["status"] for trial in manifest["trials"]}
    assert statuses == {"moody fp32": "refused", "reference fp32": "refused", "moody fp16": "passed"}
    if not manifest["contest"][1]["race"]["disturbed"]:
        assert "in float32 it has 0." in why(manifest, "moody")
    assert "memory: weights failed" in why(manifest, "reference")
    page = (place.dist / "report.html").read_text(encoding="utf-8")
    assert "Which target" in page and "moody fp16" in page


@pytest.mark.slow
def test_a_device_finishes_a_build_through_the_target_that_won(place: Place) -> None:
    others = {"moody": {"wait_for": str(place.root / "here")}}
    place.write_fleet({"one": profile(place, "one", "ghost", others)})
    assert place.build("--json").json["devices"][0]["status"] == "deferred"
    (place.root / "here").touch()
    assert place.run("finish", place.dist / "one").code == 0
    assert place.manifest("one")["artifact"]["deferred"] == ""
