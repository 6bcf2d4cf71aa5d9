"""Pruning by the real command: what is asked, what is made, what is said, and what is refused."""

from __future__ import annotations

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
    return place


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
    choice = conv.run("plan", conv.fleet, "--json").json["plans"][0]["choices"]["pruning"]
    assert choice["value"] == "0.3" and "30% of the multiply-accumulates" in choice["reason"]
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
    assert [trial["purpose"] for trial in manifest["trials"]] == ["yardstick", "candidate"]
    assert manifest["trials"][0]["pruned"] == 0 and manifest["trials"][1]["pruned"] == round(pruning["ratio"], 4)
    assert [stage["stage"] for stage in manifest["stages"]] == ["rewrite", "prune", "build"]
    text = conv.run("inspect", conv.dist / "one").out
    assert "pruned by" in text and "24 -> " in text
    assert "conv_a" in conv.run("inspect", conv.dist / "one", "--node", "conv_a").out
    page = (conv.dist / "report.html").read_text(encoding="utf-8")
    assert "What was pruned" in page
