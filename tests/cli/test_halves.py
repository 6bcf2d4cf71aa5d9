"""Half a build: up to the border model, or from a border model on."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Outcome, Place


def border_only(place: Place, *args: str, out: str = "borders") -> Outcome:
    return place.run("build", place.fleet, "-o", out, *args)


def from_border(place: Place, border: str, *args: str) -> Outcome:
    profile = ("--profile", "./one.yaml")
    return place.run("build", border, *profile, "--from", "compile", "-o", "again", "--repeat", "1", *args)


def operators(place: Place, folder: str) -> set[str]:
    return {node.op_type for node in onnx.load(place.root / folder / "one" / "border.onnx").graph.node}


@pytest.fixture
def one(place: Place) -> Place:
    rng = np.random.default_rng(1)
    np.savez(place.root / "samples.npz", x=rng.normal(size=(8, 3, 8, 8)).astype(np.float32))
    place.write_fleet({"one": place.profile("one")}, calibration={"path": "samples.npz"})
    return place


def test_both_halves_in_turn_make_what_the_whole_makes(one: Place) -> None:
    assert one.build().code == 0
    outcome = border_only(one, "--to", "specialize", "--json")
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["devices"]
    assert (row["status"], row["stages"], row["error"]) == ("border", ["rewrite"], None)
    assert {path.name for path in (one.root / "borders" / "one").iterdir()} == {"border.onnx"}
    assert not (one.root / "borders" / "build.json").exists()
    assert from_border(one, row["border"]).code == 0
    whole, again = (json.loads((one.root / name / "one/manifest.json").read_text()) for name in ("dist", "again"))
    assert whole["border"]["sha256"] == again["border"]["sha256"] == row["sha256"]
    compiled = [{stage["stage"]: stage["sha256"] for stage in value["stages"]}["compile"] for value in (whole, again)]
    assert compiled[0] == compiled[1], "the target half starts from the border model and nothing else of the model"
    assert again["passes"] == [] and again["plan"]["target_passes"] == []
    assert {step["reason"] for step in again["plan"]["passes"]} == {"--from compile"}


def test_the_border_models_are_said_to_be_no_artifacts_and_how_one_is_built_of_them(one: Place) -> None:
    out = border_only(one, "--to", "specialize").out
    assert "no artifacts" in out
    command = next(line for line in out.splitlines() if line.startswith("  fleetc ")).split()[1:]
    assert command[:2] == ["build", "borders/one/border.onnx"] and command[-2:] == ["--from", "compile"]
    assert one.run(*command, "-o", "again", "--repeat", "1").code == 0


def test_a_quantized_border_is_built_in_the_precision_that_is_named_for_it(one: Place) -> None:
    assert border_only(one, "--to", "rewrite", "--precision", "int8", out="early").code == 0
    assert border_only(one, "--to", "quantize", "--precision", "int8").code == 0
    assert "QuantizeLinear" not in operators(one, "early")
    assert "QuantizeLinear" in operators(one, "borders")
    border = "borders/one/border.onnx"
    unsaid = from_border(one, border)
    assert unsaid.code == 2 and "is quantized" in unsaid.err and "--precision" in unsaid.err
    assert from_border(one, border, "--precision", "int8").code == 0
    manifest = json.loads((one.root / "again/one/manifest.json").read_text())
    assert manifest["artifact"]["precision"] == "int8"
    assert manifest["verdict"]["reference"] == "border model"
    float_ = from_border(one, "early/one/border.onnx", "--precision", "int8")
    assert float_.code == 2 and "nothing is quantized" in float_.err


def test_a_half_precision_border_is_not_taken_for_float32(one: Place) -> None:
    assert border_only(one, "--to", "specialize", "--precision", "fp16").code == 0
    border = "borders/one/border.onnx"
    assert "FLOAT16" in from_border(one, border).err
    assert from_border(one, border, "--precision", "fp16").code == 0
    assert border_only(one, "--to", "specialize", out="whole").code == 0
    assert "in that type" in from_border(one, "whole/one/border.onnx", "--precision", "fp16").err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--to", "coffee"), ("there is no stage 'coffee'", "rewrite, prune, recover, quantize, specialize")),
        (("--to", "compile"), ("a build cannot end at 'compile'", "specialize")),
        (("--from", "quantize"), ("a build cannot start at 'quantize'", "compile")),
        (("--from", "compile", "--to", "quantize"), ("does not come by 'quantize'",)),
        (("--from", "compile", "--skip-pass", "fuse-pad", "--prune", "0.5"), ("--skip-pass, --prune", "border model")),
        (("--to", "quantize", "--check-reproducible"), ("--check-reproducible",)),
    ],
)
def test_a_half_that_cannot_be_is_one_message_and_code_2(
    one: Place, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    outcome = border_only(one, *args, out="nothing")
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert not (one.root / "nothing").exists()


@pytest.mark.parametrize("args", [("--to", "specialize"), ("--from", "compile")])
def test_what_is_decided_by_comparing_builds_is_not_had_by_halves(one: Place, args: tuple[str, ...]) -> None:
    one.write_fleet({"one": one.profile("one")}, limits={"memory_reduction_pct": 20})
    outcome = border_only(one, *args, out="nothing")
    assert outcome.code == 2 and f"{' '.join(args)}: one" in outcome.err
    assert not (one.root / "nothing").exists()


def test_a_delivered_folder_is_not_replaced_by_a_border_model_and_the_other_way_it_is(one: Place) -> None:
    assert border_only(one, "--to", "specialize", out="dist").code == 0
    assert one.build().code == 0
    before = one.digests()
    refused = border_only(one, "--to", "specialize", out="dist")
    assert refused.code == 2 and "an artifact is delivered" in refused.err
    assert one.digests() == before


def test_a_device_whose_border_cannot_be_made_fails_alone(one: Place) -> None:
    one.write_fleet({"one": one.profile("one"), "two": one.profile("two", "no-such-target")})
    outcome = border_only(one, "--to", "quantize", "--json")
    assert outcome.code == 6, outcome.err
    assert [(row["device"], row["status"]) for row in outcome.json["devices"]] == [("one", "border"), ("two", "failed")]
    assert "no-such-target" in outcome.json["devices"][1]["error"]["what"]
