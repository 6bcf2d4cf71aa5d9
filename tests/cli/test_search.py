"""The search for a precision, by the real command: gates, what is delivered, what is said, and a kill in the middle."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Place, write_model
from tests.cli.test_interrupts import end, wait_for

WIDE = "(float[batch, 96] x) => (float[batch, 96] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }"


@pytest.fixture
def wide(place: Place) -> Place:
    """A model that is nearly all weights, so that half the bits are half the payload."""
    write_model(place.root / "model.onnx", WIDE, w1=(96, 96), w2=(96, 96))
    return place


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
    assert manifest["decision"]["precision"] == manifest["plan"]["choices"]["precision"]["value"] == "fp16"
    assert "fp32: memory: weights failed: 0 % less, limit at least 40" in manifest["decision"]["reason"]
    trials = {trial["precision"]: trial for trial in manifest["trials"]}
    assert {name: trial["status"] for name, trial in trials.items()} == {"fp32": "refused", "fp16": "passed"}
    gates = {gate["name"]: gate for gate in manifest["gates"]}
    assert gates["memory: weights"]["passed"] and 40 <= gates["memory: weights"]["value"] <= 50
    assert gates["memory: run"]["passed"] is None and "MiB" in gates["memory: run"]["why"]
    assert trials["fp16"]["speed"]["evidence"] == "measured-host"


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


def test_a_device_whose_gate_fails_does_not_sink_the_others(wide: Place) -> None:
    limited(wide, {}, one={}, two={})
    text = json.loads(wide.fleet.read_text())
    text["devices"]["two"]["limits"] = {"latency_ms": 1e-6}
    wide.fleet.write_text(json.dumps(text))
    outcome = wide.build()
    assert outcome.code == 6, outcome.err
    assert (wide.dist / "one").is_dir() and not (wide.dist / "two").exists()
    assert "latency failed" in outcome.err and "ms, limit at most 1e-06 (median; measured-host)" in outcome.err


def test_a_forced_precision_that_a_gate_refuses_fails_with_both_numbers(wide: Place) -> None:
    limited(wide, {"memory_reduction_pct": 40})
    outcome = wide.build("--precision", "fp32")
    assert outcome.code == 5, outcome.err
    assert "memory: weights failed: 0 % less, limit at least 40" in outcome.err
    assert wide.build("--precision", "fp16").code == 0
    assert wide.manifest("one")["decision"]["precision"] == "fp16"


def test_a_candidate_that_cannot_be_built_is_recorded_and_the_others_are_tried(wide: Place) -> None:
    write_model(wide.root / "model.onnx", WIDE.replace("Relu", "Sin"), w1=(96, 96), w2=(96, 96))
    limited(wide, {"latency_ms": 1e6}, one={"refuses": ["Cast"]})
    assert wide.build().code == 0, wide.build().err
    trials = wide.manifest("one")["trials"]
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert [(trial["precision"], "Cast" in trial["why"] or "refuses" in trial["why"]) for trial in failed] == [
        ("fp16", True)
    ]


def test_a_search_killed_in_the_middle_goes_on_without_repeating_finished_trials(wide: Place) -> None:
    log = wide.root / "built.log"
    limited(wide, {"memory_reduction_pct": 40}, one={"seconds": 1.5})
    others = finished_builds(wide)
    process = wide.start(*wide.build_command())
    wait_for(lambda: log.exists() and len(log.read_text().split()) >= 2, "the build of the second trial")
    end(process, signal.SIGKILL)
    started, finished = len(log.read_text().split()), finished_builds(wide) - others
    outcome = wide.build()
    assert outcome.code == 0, outcome.err
    assert 1 <= len(finished) < 3
    assert len(log.read_text().split()) - started == 3 - len(finished), "fp32, fp16 and one node: each is finished once"
    assert wide.build().code == 0
    assert len(finished_builds(wide) - others) == 3


def finished_builds(place: Place) -> set[Path]:
    entries = (place.cache / "entries").glob("*/*/entry.json")
    return {path for path in entries if '"stage": "build"' in path.read_text(encoding="utf-8")}


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
