"""Pruning by the real command: what is asked, what is made, what is said, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Place, write_model

BODY = """(float[batch, 3, 8, 8] x) => (float[batch, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Relu(c)
    g = GlobalAveragePool(s)
    h = Flatten(g)
    y = MatMul(h, v)
}"""
SHAPES = {"w1": (24, 3, 3, 3), "b1": (24,), "w2": (16, 24, 3, 3), "b2": (16,), "v": (16, 4)}


@pytest.fixture
def conv(place: Place) -> Place:
    """Two convolutions whose channels can go, with data to calibrate on and to judge by."""
    write_model(place.root / "model.onnx", BODY, **SHAPES)
    write_samples(place, 40)
    return replace(place, repeat=1)


def write_samples(place: Place, count: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(place.root / "model.onnx", providers=["CPUExecutionProvider"])
    samples = np.random.default_rng(3).standard_normal((count, 3, 8, 8)).astype(np.float32)
    labels = session.run(None, {"x": samples})[0].argmax(axis=1)
    np.savez(place.root / "data.npz", x=samples, labels=labels.astype(np.int64))


def fleet(place: Place, limit: float | None = 50, **more: Any) -> None:
    device = {"profile": place.profile("one", "reference"), **more}
    judged: dict[str, Any] = {} if limit is None else {"limits": {"accuracy_drop_pct": limit}}
    place.write_fleet({"one": device}, calibration={"path": "data.npz"}, **judged)


def test_plan_says_what_is_pruned_and_why(conv: Place) -> None:
    fleet(conv, prune=0.3)
    decision = conv.run("plan", conv.fleet, "--json").json["plans"][0]["decisions"]["pruning"]
    assert decision["value"] == "0.3" and "30% of the multiply-accumulates" in decision["reason"]
    assert "pruning           off: asked for" in conv.run("plan", conv.fleet, "--prune", "off").out
    assert "pruning           auto:" in conv.run("plan", conv.fleet, "--prune", "auto").out


def test_a_ratio_is_cut_repaired_and_delivered_and_the_manifest_says_it(conv: Place) -> None:
    fleet(conv, prune=0.3)
    outcome = conv.build()
    assert outcome.code == 0, outcome.err
    manifest = conv.manifest("one")
    pruning = manifest["pruning"]
    assert 0.28 <= pruning["ratio"] <= 0.6 and pruning["macs_after"] < 0.72 * pruning["macs_before"]
    assert all(group["kept"] % pruning["multiple"] == 0 for group in pruning["groups"])
    assert pruning["repaired"][0]["after"] < pruning["repaired"][0]["before"]
    assert manifest["verdict"]["reference"] == "border model"
    changes = manifest["verdict"]["border"]["points"][0]["outputs"]
    assert all(0 < output["sqnr_db"] < 60 for output in changes.values()), "how far pruning moved the results"
    assert [trial["purpose"] for trial in manifest["trials"]] == ["baseline", "candidate"]
    assert manifest["trials"][0]["pruned"] == 0 and manifest["trials"][1]["pruned"] == round(pruning["ratio"], 4)
    assert [stage["stage"] for stage in manifest["stages"]] == ["rewrite", "prune", "compile"]
    text = conv.run("inspect", conv.dist / "one").out
    assert "pruned by" in text and "24 -> " in text
    assert "conv_a" in conv.run("inspect", conv.dist / "one", "--node", "conv_a").out
    page = (conv.dist / "report.html").read_text(encoding="utf-8")
    assert "What was pruned" in page


BOARD = {
    "cpu": {"model": "board", "cores": 1, "threads": 1, "clock_mhz": 1000, "isa": ["asimd"]},
    "provenance": {"cpu": "made up for a test"},
}


def modelled(place: Place, **facts: Any) -> str:
    """A device that nothing of can run here, so that its speed is a roofline, or nothing where no facts are given."""
    value = {"schema": 1, "name": "one", "target": "moody", "target_options": {"load": "unavailable"}, **facts}
    (place.root / "one.yaml").write_text(json.dumps(value), encoding="utf-8")
    return "./one.yaml"


def auto(place: Place, profile: str, limit: float = 50) -> None:
    data = {"path": "data.npz"}
    device = {"profile": profile, "precision": "fp32", "prune": "auto"}
    limits = {"accuracy_drop_pct": limit}
    place.write_fleet({"one": device}, calibration=data, limits=limits)


def test_auto_climbs_the_ladder_and_delivers_what_is_faster_on_that_device(conv: Place) -> None:
    auto(conv, modelled(conv, **BOARD))
    outcome = conv.build("--search-budget", "4")
    assert outcome.code == 0, outcome.err
    manifest = conv.manifest("one")
    purposes = [trial["purpose"] for trial in manifest["trials"]]
    assert purposes[0] == "candidate" and set(purposes[1:]) == {"pruning"} and len(purposes) <= 5
    chosen = manifest["trials"][-1]
    assert manifest["decision"]["trial"] == chosen["number"] and chosen["pruned"] > 0
    assert chosen["speed"]["speedup"] > 1.03 and chosen["speed"]["evidence"] == "estimated"
    decision = manifest["plan"]["decisions"]["pruning"]
    assert "× the speed of fp32 unpruned (estimated)" in decision["reason"] and float(decision["value"]) > 0
    assert "pruned" in manifest["decision"]["reason"]


@pytest.mark.slow
def test_auto_ships_unpruned_where_nothing_tells_a_gain_and_says_so(conv: Place) -> None:
    auto(conv, modelled(conv))
    outcome = conv.build("--search-budget", "3")
    assert outcome.code == 0, outcome.err
    manifest = conv.manifest("one")
    decision = manifest["plan"]["decisions"]["pruning"]
    assert decision["value"] == "off" and "nothing measures or models what pruning gains" in decision["reason"]
    assert manifest["pruning"] is None and manifest["verdict"]["reference"] == "imported model"
    assert any(trial["purpose"] == "pruning" and trial["pruned"] > 0 for trial in manifest["trials"])


def test_auto_ships_unpruned_where_any_cut_breaks_the_limit(conv: Place) -> None:
    auto(conv, modelled(conv, **BOARD), limit=0)
    assert conv.build("--search-budget", "3").code == 0
    manifest = conv.manifest("one")
    assert "breaks the accuracy limit" in manifest["plan"]["decisions"]["pruning"]["reason"]
    assert [trial["status"] for trial in manifest["trials"]][1:] == ["refused"] * (len(manifest["trials"]) - 1)


@pytest.mark.slow
def test_a_forced_ratio_that_a_gate_refuses_fails_with_both_numbers(conv: Place) -> None:
    fleet(conv, limit=0.001, prune=0.5)
    conv.write_fleet(
        {"one": {"profile": modelled(conv, **BOARD), "precision": "fp32", "prune": 0.5}},
        calibration={"path": "data.npz"},
        limits={"accuracy_drop_pct": 0.001},
    )
    outcome = conv.build()
    assert outcome.code == 5, outcome.err
    assert "points lost, limit at most 0.001" in outcome.err and "pruned by" in outcome.err
    assert not (conv.dist / "one").exists()


@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "-0.2", "nan", "most"])
def test_a_ratio_that_is_none_is_refused_before_anything_is_read(conv: Place, ratio: str) -> None:
    fleet(conv)
    outcome = conv.build("--prune", ratio)
    assert outcome.code == 2 and "--prune" in outcome.err and "off, auto, or a ratio" in outcome.err
    assert not conv.dist.exists()


@pytest.mark.parametrize("ratio", [0, 1, True, "most"])
def test_the_fleet_files_ratio_is_refused_at_its_line(conv: Place, ratio: object) -> None:
    fleet(conv, prune=ratio)
    outcome = conv.build()
    assert outcome.code == 2 and "devices.one.prune: must be off, auto, or a ratio" in outcome.err


def test_pruning_without_calibration_or_judge_is_refused_with_what_to_add(conv: Place) -> None:
    conv.write_fleet({"one": conv.profile("one", "reference")})
    outcome = conv.build("--prune", "0.3")
    assert outcome.code == 2 and "pruning needs calibration data" in outcome.err
    fleet(conv, limit=None)
    outcome = conv.build("--prune", "auto")
    assert outcome.code == 2 and "nothing to judge by" in outcome.err


@pytest.mark.parametrize(
    ("body", "shapes", "message"),
    [
        ("y = Relu(x)", {}, "nothing multiplies"),
        ("y = Conv <pads = [1, 1, 1, 1]> (x, w)", {"w": (3, 3, 3, 3)}, "it is the model's output 'y'"),
        ("a = Conv<pads = [1, 1, 1, 1]>(x, w) y = Conv<pads = [1, 1, 1, 1]>(a, w)", {"w": (3, 3, 3, 3)}, "shared"),
        ("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", {"s": ()}, "quantized already"),
    ],
)
def test_models_that_cannot_be_pruned_say_why(
    place: Place, body: str, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    write_model(
        place.root / "model.onnx", f"(float[batch, 3, 8, 8] x) => (float[batch, 3, 8, 8] y) {{ {body} }}", **shapes
    )
    np.savez(place.root / "data.npz", x=np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32))
    fleet(place, limit=None, prune=0.3)
    outcome = place.build()
    assert outcome.code == 3 and message in outcome.err, outcome.err
    assert not (place.dist / "one").exists()


def test_more_than_can_be_cut_is_refused_with_what_can(conv: Place) -> None:
    fleet(conv, limit=None, prune=0.99)
    outcome = conv.build()
    assert outcome.code == 3 and "99% of the multiply-accumulates were asked for" in outcome.err
    assert "can be cut" in outcome.err


def test_one_sample_is_enough_to_be_regularised_and_is_said(conv: Place) -> None:
    write_samples(conv, 1)
    fleet(conv, limit=None, prune=0.3)
    outcome = conv.build()
    assert outcome.code == 0, outcome.err
    assert any("too few calibration samples" in text for text in conv.manifest("one")["pruning"]["warnings"])


@pytest.mark.slow
def test_a_pruned_model_is_pruned_again_and_everything_else_comes_from_the_store(conv: Place) -> None:
    fleet(conv, limit=None, prune=0.3)
    assert conv.build().code == 0
    before = conv.digests()
    assert conv.build().code == 0
    assert conv.digests() == before
    stages = json.loads((conv.dist / "one" / "measurements.json").read_text())["stages"]
    assert {"stage": "prune", "from_store": True} in stages
    (conv.dist / "one" / "border.onnx").rename(conv.root / "model.onnx")
    assert conv.build().code == 0
    assert conv.manifest("one")["pruning"]["macs_before"] < conv.manifest("one")["source"]["macs"] * 1.01
