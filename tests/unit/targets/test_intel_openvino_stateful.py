"""A decoder whose cache stays inside: the same answers as with the cache fed back, and weights that stay packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graph import DecoderSize
from language_models import tiny_decoder, windows

from compiler.artifact import Artifact
from compiler.compress.weight_only import Budget, WeightOptions, choose_weights, fit_weights, measure_weights
from compiler.fleet import Range
from compiler.fleet.profile import load_profile
from compiler.model.frontend.infer import infer_shapes
from compiler.model.numerics import TOLERANCES, Array, compare
from compiler.model.reference import Unoptimized
from compiler.target import KeepsCache, TargetPlan
from targets.intel_openvino import TARGET, Options
from targets.intel_openvino.quantized import WEIGHTS
from targets.intel_openvino.toolchain import openvino

pytestmark = pytest.mark.needs_openvino
SIZE = DecoderSize(layers=1, width=128, heads=4, kv_heads=2, hidden=192, vocabulary=256)
DIMS = {
    "batch": Range(1, 1, 1),
    "sequence": Range(1, 1, 16),
    "past": Range(0, 16, 31),
    "past + sequence": Range(1, 17, 47),
}
PROFILE = load_profile("intel-n100")


def build(model: ir.Model, folder: Path, precision: str = "fp32") -> Artifact:
    folder.mkdir()
    return TARGET.build(model, TargetPlan(precision, Options(), dims=DIMS, threads=1), PROFILE, workdir=folder)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny_decoder(SIZE)


@pytest.fixture(scope="module")
def artifact(model: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build(model, tmp_path_factory.mktemp("stateful") / "one")


def close(wanted: Mapping[str, Array], given: Mapping[str, Array], tolerance: str) -> bool:
    return all(TOLERANCES[tolerance].accepts(compare(wanted[name], given[name])) for name in wanted)


def test_it_computes_behind_any_cache_that_it_is_given(model: ir.Model, artifact: Artifact) -> None:
    runner = TARGET.load(artifact)
    for length, past in ((5, 9), (5, 0), (5, 4), (16, 31)):  # the last: all that fits, behind a full cache
        (feeds,) = windows(model, 1, length=length, past=past)
        wanted, given = Unoptimized(model).run(feeds), runner.run(feeds)
        assert wanted.keys() == given.keys() and close(wanted, given, "fp32")


def test_what_follows_is_computed_behind_what_went_before(model: ir.Model, artifact: Artifact) -> None:
    runner = TARGET.load(artifact)
    assert isinstance(runner, KeepsCache)
    (whole,) = windows(model, 1, length=7)
    expected = Unoptimized(model).run(whole)["logits"]
    for _ in range(2):  # forgetting makes the second time the first
        runner.forget()
        rows = []
        for start, end in ((0, 4), (4, 5), (5, 7)):
            ids, places = (whole[name][:, start:end] for name in ("input_ids", "position_ids"))
            feeds = {"input_ids": ids, "position_ids": places, "attention_mask": np.ones((1, end), np.int64)}
            outputs = runner.follow(feeds)
            assert outputs.keys() == {"logits"}
            rows.append(outputs["logits"])
        assert close({"logits": expected}, {"logits": np.concatenate(rows, axis=1)}, "fp32")


def test_the_device_gets_what_openvino_genai_takes(artifact: Artifact) -> None:
    network = openvino().Core().read_model(artifact.root / "payload/model.xml")
    assert {port.get_any_name() for port in network.inputs} == {
        "input_ids",
        "attention_mask",
        "position_ids",
        "beam_idx",
    }
    assert [port.get_any_name() for port in network.outputs] == ["logits"]
    assert len(network.get_sinks()) == 2 * SIZE.layers
    assert not (artifact.root / "model.xml").exists() and not (artifact.root / "model.bin").exists()


def test_two_builds_give_the_same_bytes(model: ir.Model, artifact: Artifact, tmp_path: Path) -> None:
    again = build(model, tmp_path / "again")
    for name in artifact.files:
        assert (artifact.root / name).read_bytes() == (again.root / name).read_bytes(), name


def test_weights_in_blocks_stay_as_small_as_they_are(model: ir.Model, tmp_path: Path) -> None:
    batches, how = windows(model, 2), WeightOptions(batches=2)
    choices = WEIGHTS.weights
    assert choices is not None
    common = {"folder": tmp_path / "work", "reads": tmp_path / "reads", "tell": lambda text: None}
    measure_weights(model, batches, choices, how, logits="logits", result=tmp_path / "costs.json", **common)
    plan = choose_weights(tmp_path / "costs.json", budget=Budget(115_000), times={}, scheme="openvino-weights")
    made = fit_weights(model, batches, plan.formats, how, **common)
    infer_shapes(made)
    assert {choice.format.bits for choice in plan.choices} == {4, 8}
    artifact = build(made, tmp_path / "small", "int4-weights")
    stored = (artifact.root / "payload/model.bin").stat().st_size
    assert stored < plan.bytes + 4096
    (feeds,) = windows(model, 1, length=5, past=4)
    assert close(Unoptimized(made).run(feeds), TARGET.load(artifact).run(feeds), "int8")
