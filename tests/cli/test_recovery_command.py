"""Recovery of a pruned model by the real command: what is asked, trained, said, resumed and refused."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Place, write_model
from tests.cli.test_pruning_command import BOARD, BODY, SHAPES, fleet, modelled, write_samples

TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: pip install 'fleetc[train]'"
)
SHORT = 0.03
"""Minutes: two seconds, hundreds of steps of the little network."""


@pytest.fixture
def conv(place: Place) -> Place:
    """Two convolutions whose channels can go, with data to learn from and to judge by."""
    write_model(place.root / "model.onnx", BODY, **SHAPES)
    write_samples(place, 40)
    return place


def judged_fleet(place: Place, limit: float, minutes: float) -> None:
    """A device that runs nothing here, which saves measuring it: accuracy is the border model's."""
    device = {"profile": modelled(place, **BOARD), "precision": "fp32", "prune": 0.5, "recover_minutes": minutes}
    place.write_fleet({"one": device}, calibration={"path": "data.npz"}, limits={"accuracy_drop_pct": limit})


@TORCH
def test_plan_says_how_long_is_trained_and_that_it_does_not_repeat(conv: Place) -> None:
    fleet(conv, prune=0.5, recover_minutes=3)
    decision = conv.run("plan", conv.fleet, "--json").json["plans"][0]["decisions"]["pruning"]
    assert decision["value"] == "0.5, at most 3 min of recovery"
    assert "trained for at most 3 min" in decision["reason"] and "differs from run to run" in decision["reason"]
    assert "auto, at most 0.5 min" in conv.run("plan", conv.fleet, "--prune", "auto", "--recover", "0.5").out
    assert "off: asked for" in conv.run("plan", conv.fleet, "--prune", "off").out


@TORCH
def test_pruned_model_is_trained_judged_by_the_gates_metric_delivered_and_told(conv: Place) -> None:
    judged_fleet(conv, limit=0.08, minutes=SHORT)  # 0.06 points are lost without it
    outcome = conv.build()
    assert outcome.code == 0, outcome.err
    manifest = conv.manifest("one")
    assert [stage["stage"] for stage in manifest["stages"]] == ["rewrite", "prune", "recover", "compile"]
    found = manifest["pruning"]["recovered"]
    assert found["steps"] > 0 and found["metric"] == "cosine" and found["resumed_at"] == 0
    assert found["best"]["value"] >= found["checks"][0]["value"] > -0.08
    (judged,) = [one["accuracy"]["drop"]["judged_pct"] for one in manifest["trials"] if one["pruned"]]
    assert judged == pytest.approx(-found["best"]["value"], abs=1e-4)
    assert f"recovered in {found['steps']} steps" in conv.run("inspect", conv.dist / "one").out
    assert "points of cosine lost" in (conv.dist / "report.html").read_text(encoding="utf-8")


@TORCH
def test_what_is_good_enough_as_it_is_is_not_trained(conv: Place) -> None:
    judged_fleet(conv, limit=50, minutes=60)
    assert conv.build().code == 0
    found = conv.manifest("one")["pruning"]["recovered"]
    assert (found["steps"], found["stopped"]) == (0, "enough")


@TORCH
def test_a_second_build_takes_it_from_the_store_and_nothing_is_left_beside(conv: Place) -> None:
    fleet(conv, limit=None, prune=0.5, recover_minutes=SHORT)
    assert conv.build().code == 0
    before = conv.digests()
    found = conv.manifest("one")["pruning"]["recovered"]
    assert found["metric"] == "" and found["steps"] > 0
    assert "error of the outputs" in conv.run("inspect", conv.dist / "one").out
    assert not list((conv.cache / "tmp").iterdir())
    assert conv.build().code == 0
    assert conv.digests() == before
    stages = json.loads((conv.dist / "one" / "measurements.json").read_text())["stages"]
    assert {"stage": "recover", "from_store": True} in stages


@TORCH
@pytest.mark.slow
def test_a_build_killed_in_the_middle_goes_on_at_its_step(conv: Place) -> None:
    fleet(conv, limit=None, prune=0.5, recover_minutes=2)
    child = conv.start(*conv.build_command())
    checkpoint = _checkpoint(conv)
    while checkpoint is None:
        assert child.poll() is None, "the build ended before it wrote a checkpoint"
        time.sleep(0.2)
        checkpoint = _checkpoint(conv)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    outcome = conv.build()
    assert outcome.code == 0, outcome.err
    found = conv.manifest("one")["pruning"]["recovered"]
    assert 0 < found["resumed_at"] < found["steps"] and found["seconds"] < 150
    assert not checkpoint.parent.exists()


def _checkpoint(place: Place) -> Path | None:
    return next((place.cache / "tmp").glob("*/recovery.pt"), None)


@TORCH
def test_operator_that_pytorch_does_not_have_is_named(conv: Place) -> None:
    body = BODY.replace("h = Flatten(g)", "h0 = Flatten(g) h = CumSum(h0, one)")
    write_model(conv.root / "model.onnx", body.replace(") {", ") <int64 one = {1}> {", 1), **SHAPES)
    write_samples(conv, 20)
    fleet(conv, limit=None, prune=0.3, recover_minutes=SHORT)
    outcome = conv.build()
    assert outcome.code == 3 and "CumSum" in outcome.err and "without recovery" in outcome.err, outcome.err
    assert not (conv.dist / "one").exists()


@TORCH
def test_check_of_reproducibility_is_refused_before_anything_is_built(conv: Place) -> None:
    fleet(conv, limit=None, prune=0.3, recover_minutes=SHORT)
    outcome = conv.build("--check-reproducible")
    assert outcome.code == 2 and "one: recovery trains for a time" in outcome.err
    assert not conv.dist.exists()


def test_recovery_without_pytorch_is_said_before_anything_is_built(
    conv: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as Python itself marks what cannot be imported
    fleet(conv, limit=None, prune=0.3, recover_minutes=SHORT)
    for outcome in (conv.run("plan", conv.fleet), conv.build()):
        assert outcome.code == 4 and "pip install 'fleetc[train]'" in outcome.err, outcome.err
    assert not (conv.dist / "one").exists()


def test_recovery_of_what_is_not_pruned_is_refused_where_it_is_asked_for(conv: Place) -> None:
    fleet(conv, limit=None, recover_minutes=5)
    outcome = conv.build()
    assert outcome.code == 2 and "devices.one: recovery trains a pruned model" in outcome.err, outcome.err
    fleet(conv, limit=None, prune="off")
    outcome = conv.build("--recover", "5")
    assert outcome.code == 2 and "--recover: recovery trains a pruned model, and one is not pruned" in outcome.err
    assert not conv.dist.exists()


def test_fleets_recovery_leaves_a_device_alone_that_is_not_to_be_pruned(conv: Place) -> None:
    device = {"profile": conv.profile("one", "reference"), "prune": "off"}
    conv.write_fleet({"one": device}, calibration={"path": "data.npz"}, prune=0.3, recover_minutes=5)
    assert "pruning           off: asked for" in conv.run("plan", conv.fleet).out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "long"])
def test_a_time_that_is_none_is_refused(conv: Place, minutes: str) -> None:
    fleet(conv, limit=None, prune=0.3)
    outcome = conv.build("--recover", minutes)
    assert outcome.code == 2 and "--recover" in outcome.err and not conv.dist.exists()
    value = minutes if minutes == "long" else float(minutes)
    fleet(conv, limit=None, prune=0.3, recover_minutes=value)
    outcome = conv.build()
    assert outcome.code == 2 and "recover_minutes" in outcome.err and not conv.dist.exists()
