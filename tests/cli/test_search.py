"""The search for a precision, by the real command: gates, what is delivered, what is said, and a kill in the middle."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from compiler.evaluate import make_split
from tests.cli.conftest import Place, checked, write_model
from tests.cli.test_interrupts import end, wait_for

WIDE = "(float[batch, 96] x) => (float[batch, 96] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }"


@pytest.fixture
def wide(place: Place) -> Place:
    """A model that is nearly all weights, so that half the bits are half the payload."""
    write_model(place.root / "model.onnx", WIDE, w1=(96, 96), w2=(96, 96))
    return replace(place, repeat=1)


def limited(place: Place, limits: dict[str, float], **devices: dict[str, object]) -> None:
    log = str(place.root / "built.log")
    entries = {
        name: {"profile": place.profile(name, log=log, **more)} for name, more in (devices or {"one": {}}).items()
    }
    place.write_fleet(entries, limits=limits)


def report(place: Place, device: str = "one") -> Any:
    return json.loads((place.dist / "build.json").read_text(encoding="utf-8"))["devices"][device]


def test_auto_takes_the_candidate_that_holds_the_memory_limit_and_says_why(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40})
    outcome = wide.build("--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["devices"][0]["precision"] == "fp16"
    manifest = wide.manifest("one")
    assert manifest["decision"]["precision"] == manifest["plan"]["decisions"]["precision"]["value"] == "fp16"
    assert "fp32: memory: weights failed: 0 % less, limit at least 40" in manifest["decision"]["reason"]
    trials = {trial["precision"]: trial for trial in manifest["trials"]}
    assert {name: trial["status"] for name, trial in trials.items()} == {"fp32": "refused", "fp16": "passed"}
    gates = {gate["name"]: gate for gate in manifest["gates"]}
    assert gates["memory: weights"]["passed"] and 40 <= gates["memory: weights"]["value"] <= 50
    assert gates["memory: run"]["passed"] is None and "MiB" in gates["memory: run"]["why"]
    assert trials["fp16"]["speed"]["evidence"] == "measured-host"
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in wide.cache.rglob("entry.json")]
    (race,) = (dict(entry["parts"]) for entry in entries if entry["stage"] == "speed")
    assert json.loads(race["arguments"])["until"]["budget_s"] == 0, "FLEETC_RACE_SECONDS bounds the race"


@pytest.mark.slow
def test_a_target_that_exceeds_the_limit_by_what_it_does_not_count_builds_smaller_until_the_measured_payload_keeps_it(
    wide: Place,
) -> None:
    limited(wide, {"memory_reduction_pct": 40}, one={"code": 9000})
    outcome = wide.build("--json")
    assert outcome.code == 0, outcome.err
    manifest = wide.manifest("one")
    assert manifest["plan"]["decisions"]["precision"]["value"] == "fp16"
    gates = {gate["name"]: gate for gate in manifest["gates"]}
    # No smaller than it must be.
    assert gates["memory: weights"]["passed"] and 40 <= gates["memory: weights"]["value"] < 40.1
    assert "measured" in manifest["plan"]["decisions"]["payload"]["reason"]
    # The original, the model of one node that memory is measured with, the first fp16, and the one that fits.
    assert (wide.root / "built.log").read_text().split() == ["one"] * 4


@pytest.mark.slow
def test_a_limit_that_the_smallest_build_exceeds_is_refused_with_the_first_build(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40}, one={"code": 60000})
    outcome = wide.build("--json")
    assert outcome.code == 5, outcome.err
    (fp16,) = (trial for trial in report(wide)["report"]["trials"] if trial["precision"] == "fp16")
    assert fp16["status"] == "refused"


def test_without_limits_auto_is_the_targets_first_and_nothing_is_searched(wide: Place) -> None:
    wide.moody({"one": {"log": str(wide.root / "built.log")}})
    assert wide.build().code == 0
    assert (wide.root / "built.log").read_text().split() == ["one"]
    manifest = wide.manifest("one")
    assert [trial["precision"] for trial in manifest["trials"]] == ["fp32"] and manifest["gates"] == []


def test_limits_that_nothing_holds_are_code_5_without_an_artifact_but_with_every_figure(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 90})
    outcome = wide.build("--json")
    assert outcome.code == outcome.json["exit_code"] == 5, outcome.err
    assert not (wide.dist / "one").exists()
    row = report(wide)
    assert row["status"] == "failed" and row["error"]["exit_code"] == 5
    assert [trial["status"] for trial in row["report"]["trials"]] == ["refused", "refused"]
    saved = row["report"]["trials"][1]["gates"][0]["value"]
    nearest = f"limits: {{memory_reduction_pct: {int(saved * 10) / 10:g}}}"
    assert f"Nearest: fp16 would pass with `{nearest}`" in outcome.err
    limited(wide, {"memory_reduction_pct": int(saved * 10) / 10})
    assert wide.build().code == 0


@pytest.mark.slow
def test_a_device_whose_gate_fails_does_not_sink_the_others(wide: Place) -> None:
    limited(wide, {}, one={}, two={})
    text = json.loads(wide.fleet.read_text())
    text["devices"]["two"]["limits"] = {"latency_ms": 1e-6}
    wide.fleet.write_text(json.dumps(text))
    outcome = wide.build()
    assert outcome.code == 6, outcome.err
    assert (wide.dist / "one").is_dir() and not (wide.dist / "two").exists()
    assert "latency failed" in outcome.err and "ms, limit at most 1e-06 (median; measured-host)" in outcome.err


def test_a_candidate_of_which_less_is_expected_than_what_passes_is_not_made_unless_everything_is_asked_for(
    wide: Place,
) -> None:
    limited(wide, {"latency_ms": 1e6}, one={"half_gain": 0.5})
    log = wide.root / "built.log"
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    skipped = {trial["precision"]: trial for trial in wide.manifest("one")["trials"]}["fp16"]
    assert skipped["status"] == "skipped" and skipped["stages"] == [] and skipped["speed"] is None
    assert "0.50 × float32 at most is expected of it" in skipped["why"]
    assert "fp32 passes with 1.00 × (measured-host)" in skipped["why"]
    made = len(log.read_text().split())
    assert wide.build("--search", "thorough").code == 0
    assert wide.manifest("one")["trials"][1]["status"] == "passed"
    assert len(log.read_text().split()) == made + 1


@pytest.mark.slow
def test_a_forced_precision_that_a_gate_refuses_fails_with_both_numbers(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40})
    outcome = wide.build("--precision", "fp32")
    assert outcome.code == 5, outcome.err
    assert "memory: weights failed: 0 % less, limit at least 40" in outcome.err
    assert wide.build("--precision", "fp16").code == 0
    assert wide.manifest("one")["decision"]["precision"] == "fp16"


@pytest.mark.slow
def test_a_candidate_that_cannot_be_built_is_recorded_and_the_others_are_tried(wide: Place) -> None:
    write_model(wide.root / "model.onnx", WIDE.replace("Relu", "Sin"), w1=(96, 96), w2=(96, 96))
    limited(wide, {"latency_ms": 1e6}, one={"refuses": ["Cast"]})
    assert wide.build().code == 0, wide.build().err
    trials = wide.manifest("one")["trials"]
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert [(trial["precision"], "Cast" in trial["why"] or "refuses" in trial["why"]) for trial in failed] == [
        ("fp16", True)
    ]


@pytest.mark.parametrize("sign", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_search_ended_in_the_middle_goes_on_without_repeating_finished_trials(
    wide: Place, sign: signal.Signals
) -> None:
    log = wide.root / "built.log"
    limited(wide, {"memory_reduction_pct": 40}, one={"seconds": 0.8})
    others = finished_builds(wide)
    process = wide.start(*wide.build_command())
    wait_for(lambda: log.exists() and len(log.read_text().split()) >= 2, "the build of the second trial")
    ended = end(process, sign)
    if sign == signal.SIGINT:
        interrupted = checked(ended)
        assert interrupted.code == 130 and "run the same command again to resume:\n  fleetc build" in interrupted.err
    started, finished = len(log.read_text().split()), finished_builds(wide) - others
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    assert 1 <= len(finished) < 3
    assert len(log.read_text().split()) - started == 3 - len(finished), "fp32, fp16 and one node: each is finished once"
    assert wide.build().code == 0
    assert len(finished_builds(wide) - others) == 3


def finished_builds(place: Place) -> set[Path]:
    entries = (place.cache / "entries").glob("*/*/entry.json")
    return {path for path in entries if '"stage": "compile"' in path.read_text(encoding="utf-8")}


@pytest.mark.slow
def test_the_search_repeats_to_the_same_bytes_from_the_store(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40})
    assert wide.build().code == 0
    before = wide.digests()
    assert wide.build().code == 0
    assert wide.digests() == before


def test_plan_names_gates_and_candidates_without_a_toolchain(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40})
    outcome = wide.run("plan", wide.fleet)
    assert outcome.code == 0
    assert "auto: search among fp32, fp16" in outcome.out
    assert "memory_reduction_pct 40: stated in the fleet file" in outcome.out
    plan = wide.run("plan", wide.fleet, "--json").json["plans"][0]
    assert [one["precision"] for one in plan["candidates"]] == ["fp32", "fp16"]
    assert plan["gates"]["limits"] == {"memory_reduction_pct": 40}
    assert not Path(wide.dist).exists()


def labelled(place: Place, classes: int = 4, count: int = 48) -> dict[str, object]:
    """Samples whose labels are what the float model says of them, so that it is right about all."""
    session = onnxruntime.InferenceSession(place.root / "model.onnx", providers=["CPUExecutionProvider"])
    samples = np.random.default_rng(3).standard_normal((count, 96)).astype(np.float32)
    labels = session.run(None, {"x": samples})[0].argmax(axis=1)
    np.savez(place.root / "labelled.npz", x=samples, labels=labels.astype(np.int64))
    return {"task": "classification", "path": "labelled.npz"}


@pytest.mark.slow
def test_an_evaluation_alone_brings_default_gates_and_accuracy_is_judged_on_the_artifact(wide: Place) -> None:
    wide.write_fleet({"one": wide.profile("one")}, evaluation=labelled(wide))
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    manifest = wide.manifest("one")
    assert manifest["decision"]["precision"] == "fp16"
    accuracy = manifest["trials"][1]["accuracy"]
    assert accuracy["measured_on"] == "artifact" and accuracy["drop"]["metric"] == "top-1"
    assert accuracy["drop"]["reference"]["value_pct"] == 100.0 and accuracy["drop"]["drop_pct"] <= 2.0
    gate = next(gate for gate in manifest["gates"] if gate["name"] == "accuracy")
    assert gate["limit"] == 2.0 and gate["rule"] == "bound", "48 decisions are few: one weighs more than a point"
    assert manifest["inputs"]["evaluation"]["samples"] == 48
    certified = manifest["trials"][1]["certified"]
    assert (certified["how"], certified["agreed"], certified["folds"], certified["count"]) == ("cross-fit", 5, 5, 48)
    assert gate["value"] == certified["judged_pct"] and gate["why"].startswith("certified, cross-fit")
    assert manifest["inputs"]["evaluation"]["split"] == "cross-fit"
    told = wide.run("inspect", wide.dist / "one").out
    assert "lost while choosing:" in told and "5 of 5 folds chose it" in told


@pytest.mark.slow
def test_a_build_for_verification_has_the_fleets_threshold_from_the_half_that_chooses(place: Place) -> None:
    """The other half certifies, and what certifies chooses nothing."""
    samples = np.random.default_rng(3).standard_normal((24, 3, 8, 8)).astype(np.float32)
    people = np.repeat(np.arange(12), 2)
    np.savez(place.root / "people.npz", x=samples, labels=people)
    place.write_fleet(
        {"one": place.profile("one", "reference")},
        evaluation={"task": "verification", "path": "people.npz", "far": [0.05]},
        limits={"accuracy_drop_pct": 50, "memory_reduction_pct": 0},
    )
    outcome = place.build()
    assert outcome.code == 0, outcome.err
    manifest = place.manifest("one")
    assert manifest["inputs"]["evaluation"]["split"] == "held out"
    threshold = manifest["threshold"]
    assert (threshold["far"], threshold["people"], threshold["impostor_pairs"]) == (0.05, 6, 60)
    is_chosen = np.isin(people, make_split(people, 24, by_person=True, limit_pct=50).choosing)
    session = onnxruntime.InferenceSession(place.root / "model.onnx", providers=["CPUExecutionProvider"])
    (embedded,) = session.run(None, {"x": samples[is_chosen]})
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    similarity = (unit @ unit.T)[people[is_chosen][:, None] < people[is_chosen]]
    assert len(similarity) == 60
    assert (similarity > threshold["similarity"] + 1e-6).sum() == int(0.05 * 60)
    assert "a pair is accepted above a similarity of" in place.run("inspect", place.dist / "one").out


@pytest.mark.slow
def test_a_gate_that_nobody_could_judge_fails_a_strict_build_and_delivers_another(wide: Place) -> None:
    profile = wide.profile("one", load="unavailable")
    limited(wide, {"memory_reduction_pct": 40}, one={"load": "unavailable"})
    outcome = wide.build("--strict")
    assert outcome.code == 5, outcome.err
    assert "memory: run: not judged" in outcome.err and "this fails the build" in outcome.err
    wide.write_fleet({"one": profile}, limits={"memory_reduction_pct": 40}, unjudged={"memory": "fail"})
    assert wide.build().code == 5
    wide.write_fleet({"one": profile}, limits={"memory_reduction_pct": 40}, unjudged={"latency": "fail"})
    assert wide.build().code == 0


def test_an_artifact_that_cannot_run_here_is_judged_by_its_border_model_and_says_so(wide: Place) -> None:
    profile = wide.profile("one", load="unavailable")
    wide.write_fleet({"one": {"profile": profile, "precision": "fp16"}}, evaluation=labelled(wide))
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    trial = wide.manifest("one")["trials"][-1]
    assert trial["accuracy"]["measured_on"] == "border model"
    assert "not executed" in trial["accuracy"]["note"]
    gates = {gate["name"]: gate for gate in wide.manifest("one")["gates"]}
    assert gates["accuracy"]["passed"] and gates["memory: run"]["passed"] is None


@pytest.mark.slow
def test_accuracy_is_judged_again_on_other_data_and_the_limit_still_holds(wide: Place) -> None:
    wide.write_fleet({"one": wide.profile("one")}, evaluation=labelled(wide))
    assert wide.build().code == 0
    args = (
        "verify",
        wide.dist / "one",
        "--model",
        wide.root / "model.onnx",
        "--evaluation",
        wide.root / "labelled.npz",
    )
    again = wide.run(*args, "--json")
    assert again.code == 0, again.err
    assert again.json["gate"]["passed"] and again.json["accuracy"]["evidence"] == "measured-host"
    assert wide.run(*args[:2], "--evaluation", wide.root / "labelled.npz").code == 2
    shape = {"w1": (96, 96), "w2": (96, 96)}
    write_model(wide.root / "other.onnx", WIDE.replace("Relu", "Tanh"), **shape)
    other = wide.run(*args[:2], "--model", wide.root / "other.onnx", *args[4:])
    assert other.code == 5, "the artifact is not that model's"


@pytest.mark.slow
def test_a_metric_of_ones_own_that_raises_is_named_and_nothing_is_delivered(wide: Place) -> None:
    (wide.root / "mymetric.py").write_text("def score(outputs, labels):\n    raise KeyError('scores')\n")
    labelled(wide)
    wide.write_fleet({"one": wide.profile("one")}, evaluation={"task": "mymetric:score", "path": "labelled.npz"})
    outcome = wide.build()
    assert outcome.code == 2, outcome.err
    assert "mymetric:score" in outcome.err and "KeyError" in outcome.err
    assert not (wide.dist / "one").exists()


@pytest.mark.slow
def test_inspect_prints_trials_gates_and_layers(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40})
    assert wide.build().code == 0
    text = wide.run("inspect", wide.dist / "one").out
    assert "memory: weights passed" in text and "memory: run: not judged" in text
    assert "shares: estimated" in text
    layers = wide.run("inspect", wide.dist / "one", "--json").json["manifest"]["layers"]
    assert {layer["precision"] for layer in layers if layer["op"] != "Cast"} == {"fp16"}
    assert abs(sum(layer["share"] for layer in layers) - 1.0) < 1e-3


def test_forced_int8_without_calibration_data_is_refused_before_anything_is_built(wide: Place) -> None:
    wide.write_fleet({"one": wide.profile("one")})
    outcome = wide.build("--precision", "int8")
    assert outcome.code == 2
    assert "int8 needs calibration data" in outcome.err and not (wide.dist / "one").exists()


@pytest.mark.slow
def test_a_quantized_candidate_is_judged_by_its_border_model_and_every_layer_is_explained(wide: Place) -> None:
    data = labelled(wide)
    wide.write_fleet(
        {"one": {"profile": wide.profile("one"), "precision": "int8"}},
        calibration={"path": "labelled.npz"},
        evaluation={**data, "task": "embedding"},
    )
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    manifest = wide.manifest("one")
    assert manifest["verdict"]["reference"] == "border model"
    changes = manifest["verdict"]["border"]["points"][0]["outputs"]
    assert all(0 < output["sqnr_db"] < 60 for output in changes.values()), "how far int8 is from the imported model"
    assert "border model against the imported model" in wide.run("inspect", wide.dist / "one").out
    assert [trial["purpose"] for trial in manifest["trials"]] == ["baseline", "candidate"]
    layers = {layer["op"]: layer for layer in manifest["layers"]}
    assert layers["MatMul"]["precision"] == "int8" and layers["MatMul"]["sqnr_db"] > 10
    assert layers["Relu"]["sqnr_db"] is None
    args = ("verify", wide.dist / "one", "--model", wide.root / "model.onnx")
    assert wide.run(*args, "--evaluation", wide.root / "labelled.npz").code == 0


@pytest.mark.slow
def test_device_classes_with_equal_schemes_share_calibration_and_the_quantized_model(wide: Place) -> None:
    data = labelled(wide)
    devices = {name: {"profile": wide.profile(name, log=str(wide.root / "log")), "precision": "int8"} for name in "ab"}
    wide.write_fleet(devices, calibration={"path": "labelled.npz"}, evaluation=data, limits={"accuracy_drop_pct": 50})
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    for stage in ("rewrite", "quantize", "sensitivity"):
        assert len(entries_of(wide, stage)) == 1, stage
    first, second = (
        {row["stage"]: row["from_store"] for row in measurements(wide, name)["stages"]} for name in devices
    )
    assert (first["quantize"], first["compile"]) == (False, False)
    assert (second["rewrite"], second["quantize"], second["compile"]) == (True, True, False)
    assert wide.manifest("a")["border"]["sha256"] == wide.manifest("b")["border"]["sha256"]


@pytest.mark.slow
def test_a_limit_on_accuracy_that_nothing_meets_says_the_best_reached(wide: Place) -> None:
    data = {**labelled(wide), "task": "embedding", "rule": "point"}
    wide.write_fleet(
        {"one": wide.profile("one")},
        calibration={"path": "labelled.npz"},
        evaluation=data,
        limits={"accuracy_drop_pct": 0, "memory_reduction_pct": 40},
    )
    outcome = wide.build()
    assert outcome.code == 5, outcome.err
    trials = report(wide)["report"]["trials"]
    assert {"baseline", "candidate", "options", "float fallback"} >= {trial["purpose"] for trial in trials}
    assert any(trial["purpose"] == "options" for trial in trials)
    assert all(trial["accuracy"]["drop"]["drop_pct"] > 0 for trial in trials if trial["precision"] == "int8")
    assert "points lost, limit at most 0" in outcome.err and "Nearest:" in outcome.err
    assert any(trial["note"] for trial in trials), "where the search went no further it says why"
    tried = {json.dumps([trial["options"]["balance"]]) for trial in trials if trial["options"]}
    assert len(entries_of(wide, "calibrate")) == len(tried) + 1, (
        "ranges are chosen anew, and data observed once; evaluation"
    )


@pytest.mark.slow
def test_evaluation_data_beyond_what_calibration_showed_are_warned_of_in_the_trial_and_on_the_screen(
    wide: Place,
) -> None:
    data = {**labelled(wide), "task": "embedding"}
    with np.load(wide.root / "labelled.npz") as found:
        np.savez(wide.root / "dim.npz", x=found["x"] / 8)
    fleet = {"calibration": {"path": "dim.npz"}, "evaluation": data, "limits": {"accuracy_drop_pct": 50}}
    wide.write_fleet({"one": {"profile": wide.profile("one"), "precision": "int8"}}, **fleet)
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    (warning,) = wide.manifest("one")["trials"][1]["warnings"]
    assert "the evaluation data leave the calibrated range of" in warning and warning in outcome.err


@pytest.mark.slow
def test_a_model_that_is_quantized_already_is_verified_and_passed_on(wide: Place) -> None:
    data = labelled(wide)
    fleet = {"calibration": {"path": "labelled.npz"}, "evaluation": data, "limits": {"accuracy_drop_pct": 50}}
    wide.write_fleet({"one": {"profile": wide.profile("one"), "precision": "int8"}}, **fleet)
    assert wide.build().code == 0
    (wide.dist / "one" / "border.onnx").rename(wide.root / "model.onnx")
    wide.write_fleet({"one": wide.profile("one")}, **fleet)
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    assert "already quantized" in outcome.err
    manifest = wide.manifest("one")
    assert manifest["decision"]["precision"] == "fp32"
    gates = {gate["name"]: gate for gate in manifest["gates"]}
    assert gates["memory: weights"]["passed"] is None and "already quantized" in gates["memory: weights"]["why"]
    assert gates["accuracy"]["value"] == 0.0


def entries_of(place: Place, stage: str) -> list[Path]:
    entries = (place.cache / "entries").glob("*/*/entry.json")
    made = [path for path in entries if f'"stage": "{stage}"' in path.read_text(encoding="utf-8")]
    return [path for path in made if path.stat().st_mtime > (place.root / "labelled.npz").stat().st_mtime]


def measurements(place: Place, device: str) -> Any:
    return json.loads((place.dist / device / "measurements.json").read_text(encoding="utf-8"))
