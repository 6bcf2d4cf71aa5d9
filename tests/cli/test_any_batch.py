"""Devices that differ in their batch alone: what is of the model and the scheme is made once."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Place, write_model

SHARED = ("calibrate", "quantize", "sensitivity")
NET = """(float[batch, 3, 8, 8] x) => (float[batch, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(a)
    g = GlobalAveragePool(r)
    h = Flatten(g)
    y = MatMul(h, v)
}"""
SHAPED = NET.replace(
    "h = Flatten(g)", "s = Shape <start = 0, end = 1> (x) t = Concat <axis = 0> (s, four) h = Reshape(g, t)"
)
WEIGHTS = {"w": (4, 3, 3, 3), "v": (4, 4)}


def made(place: Place) -> Counter[str]:
    """Stage → how many different ones are in the store."""
    entries = (place.cache / "entries").glob("*/*/entry.json")
    return Counter(json.loads(path.read_text(encoding="utf-8"))["stage"] for path in entries)


@pytest.fixture
def fleet(place: Place) -> Place:
    """Two devices with an accuracy limit that every candidate holds."""
    rng = np.random.default_rng(7)
    np.savez(place.root / "samples.npz", x=rng.standard_normal((24, 3, 8, 8)).astype(np.float32))
    profile = place.profile("one")
    ranged = {"profile": profile, "batch": {"min": 1, "opt": 2, "max": 4}}
    limits = {"accuracy_drop_pct": 100.0}
    place.write_fleet(
        {"single": {"profile": profile, "batch": 1}, "ranged": ranged},
        limits=limits,
        calibration={"path": "samples.npz"},
    )
    return place


def test_a_fleet_of_two_batches_observes_quantizes_and_ranks_once(fleet: Place) -> None:
    write_model(fleet.root / "model.onnx", NET, **WEIGHTS)
    before = made(fleet)
    assert fleet.build("--device", "ranged", "--search", "thorough").code == 0
    alone = made(fleet)
    assert fleet.build("--search", "thorough").code == 0
    both = made(fleet)
    first, second = alone - before, both - alone
    assert all(first[stage] for stage in SHARED[:2]), first
    assert {stage: second[stage] for stage in SHARED} == dict.fromkeys(SHARED, 0)
    for name, size in (("single", 1), ("ranged", "batch")):
        manifest = fleet.manifest(name)
        trial = next(one for one in manifest["trials"] if one["precision"] == "int8")
        assert trial["status"] == "passed", "its artifact computes what its border model does"
        model = onnx.load(fleet.dist / name / "border.onnx", load_external_data=False)
        dim = model.graph.input[0].type.tensor_type.shape.dim[0]
        assert (dim.dim_value or dim.dim_param) == size


def test_a_device_alone_and_in_a_fleet_has_the_same_border_model(fleet: Place) -> None:
    write_model(fleet.root / "model.onnx", NET, **WEIGHTS)
    assert fleet.build("--device", "single", "--precision", "int8").code == 0
    alone = (fleet.dist / "single" / "border.onnx").read_bytes()
    assert fleet.build("--precision", "int8", "--cache", fleet.root / "other").code == 0
    assert (fleet.dist / "single" / "border.onnx").read_bytes() == alone


def test_a_graph_that_the_batch_decides_is_right_for_every_device(fleet: Place) -> None:
    write_model(fleet.root / "model.onnx", SHAPED, four=(1,), **WEIGHTS)
    model = onnx.load(fleet.root / "model.onnx")
    four = next(tensor for tensor in model.graph.initializer if tensor.name == "four")
    four.CopyFrom(onnx.numpy_helper.from_array(np.array([4], np.int64), "four"))
    for value in [value for value in model.graph.input if value.name == "four"]:
        value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, fleet.root / "model.onnx")
    outcome = fleet.build("--precision", "int8")
    assert outcome.code == 0, outcome.err
    for name in ("single", "ranged"):
        assert fleet.manifest(name)["verdict"]["parity"]["status"] == "passed"
