"""A model and a profile, without a fleet file: the first thing that is tried."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Place


@pytest.fixture
def bare(place: Place) -> Place:
    place.profile("one")
    place.profile("two", "reference")
    return place


def test_a_model_is_built_for_each_profile_that_is_named(bare: Place) -> None:
    profiles = ("--profile", "./one.yaml", "-p", "./two.yaml")
    outcome = bare.run("build", "model.onnx", *profiles, "-o", "dist", "--repeat", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert [(row["device"], row["status"]) for row in outcome.json["devices"]] == [
        ("one", "delivered"),
        ("two", "delivered"),
    ]
    assert json.loads((bare.dist / "build.json").read_text())["fleet"] == "model.onnx"


def test_it_is_the_build_of_the_fleet_file_that_says_the_same(bare: Place) -> None:
    assert bare.run("build", "model.onnx", "-p", "./one.yaml", "-o", "bare", "--repeat", "1").code == 0
    bare.write_fleet({"one": "./one.yaml"})
    assert bare.build().code == 0
    first, second = (bare.root / name / "one" / "manifest.json" for name in ("bare", "dist"))
    assert first.read_bytes() == second.read_bytes()


def test_a_plan_needs_no_fleet_file_either(bare: Place) -> None:
    np.savez(bare.root / "samples.npz", x=np.zeros((2, 3, 8, 8), np.float32), labels=np.array([0, 1]))
    asked = ("--calibration", "samples.npz", "--evaluation", "samples.npz", "--task", "classification")
    limits = ("--limit", "accuracy_drop_pct=1", "--limit", "latency_ms=40", "--batch", "1:2:4")
    outcome = bare.run("plan", "model.onnx", "-p", "./one.yaml", *asked, *limits, "--json")
    assert outcome.code == 0, outcome.err
    (plan,) = outcome.json["plans"]
    assert plan["gates"]["limits"] == {"accuracy_drop_pct": 1.0, "latency_ms": 40.0} | plan["gates"]["limits"]
    assert plan["gates"]["task"] == "classification"
    assert plan["dims"]["batch"] == {"min": 1, "opt": 2, "max": 4}


def test_the_built_in_profiles_are_known_by_name(bare: Place) -> None:
    outcome = bare.run("plan", "model.onnx", "-p", "raspberry-pi-5", "--json")
    assert outcome.json["plans"][0]["device"] == "raspberry-pi-5"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("model.onnx",), ("does not say which hardware", "--profile", "fleetc profiles list")),
        (("model.onnx", "-p", "rasberry-pi-5"), ("did you mean 'raspberry-pi-5'",)),
        (("model.onnx", "-p", "./one.yaml", "-p", "./one.yaml"), ("two profiles are named 'one'",)),
        (("none.onnx", "-p", "./one.yaml"), ("there is no file", "none.onnx")),
        (("model.onnx", "-p", "./one.yaml", "--calibration", "none.npz"), ("--calibration", "none.npz")),
        (("model.onnx", "-p", "./one.yaml", "--task", "embedding"), ("--evaluation", "Give both")),
        (("model.onnx", "-p", "./one.yaml", "--limit", "latency=4"), ("--limit latency", "latency_ms")),
        (("model.onnx", "-p", "./one.yaml", "--limit", "latency_ms"), ("no NAME=NUMBER", "--limit")),
        (("model.onnx", "-p", "./one.yaml", "--batch", "4:1"), ("--batch", "MIN:OPT:MAX")),
        (("fleet.yaml", "-p", "./one.yaml", "--batch", "2"), ("--profile, --batch", "a fleet file says that itself")),
    ],
)
@pytest.mark.parametrize("command", ["build", "plan"])
def test_what_cannot_be_obeyed_is_code_2_with_a_remedy(
    bare: Place, command: str, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    bare.write_fleet({"one": "./one.yaml"})
    outcome = bare.run(command, *args)
    assert outcome.code == 2, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not bare.dist.exists()


def test_a_part_of_the_model_is_built_and_the_manifest_says_which(bare: Place) -> None:
    model = onnx.load(bare.root / "model.onnx")
    first, last = model.graph.node[0].output[0], model.graph.node[-1].input[0]
    asked = ("build", "model.onnx", "-p", "./two.yaml", "--cut", f",{first}", "-o", "part", "--repeat", "0")
    outcome = bare.run(*asked)
    assert outcome.code == 0, outcome.err
    manifest = json.loads((bare.root / "part" / "two" / "manifest.json").read_text())
    assert manifest["inputs"]["model"]["cut"] == {"inputs": [], "outputs": [first]}
    assert bare.run("verify", "part/two", "--model", "model.onnx").code == 0
    wrong = bare.run("build", "model.onnx", "-p", "./two.yaml", "--cut", f"{last}_,", "-o", "none")
    assert wrong.code == 2 and f"Nearest: {last}" in wrong.err
