"""Devices that differ in their batch alone share what is of the model and the scheme, and every border is right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.driver.build import read_source
from compiler.driver.clock import Clock
from compiler.driver.stages.any_batch import for_data_sets, share_batch
from compiler.driver.stages.border import Border
from compiler.driver.stages.candidate import make_candidate_border
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.outputs import model_outputs
from compiler.driver.stages.quantize import Variant
from compiler.driver.stages.run import Stages
from compiler.driver.stages.sensitivity import rank_layers
from compiler.model.numerics import compare_all
from compiler.passes.probe import run_unoptimized
from compiler.plan import BuildOptions, settle
from compiler.plan.jobs import plan_fleet
from compiler.store import Store
from compiler.target.testing import text_case

NET = """(float[batch, 3, 8, 8] x) => (float[batch, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(a)
    g = GlobalAveragePool(r)
    h = Flatten(g)
    y = MatMul(h, v)
}"""
SHAPED = NET.replace("h = Flatten(g)", "s = Shape <start = 0, end = 2> (g) h = Reshape(g, s)")
"""Its target shape is a constant where the batch is known."""

SINGLE: Mapping[str, object] = {"profile": "nvidia-t4", "batch": 1}
THREE: Mapping[str, object] = {"profile": "nvidia-t4", "batch": 3}
RANGED: Mapping[str, object] = {"profile": "nvidia-t4", "batch": {"min": 1, "opt": 2, "max": 4}}


def write_fleet(folder: Path, text: str, devices: Mapping[str, Mapping[str, object]]) -> Path:
    """A fleet of int8 devices with calibration data."""
    folder.mkdir(exist_ok=True)
    proto = text_case("any-batch", text, weights={"w": (16, 3, 3, 3), "v": (16, 4)}).proto()
    onnx.save(proto, folder / "model.onnx")
    samples = np.random.default_rng(7).standard_normal((24, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "samples.npz", x=samples)
    rest = {"precision": "int8", "calibration": {"path": "samples.npz"}}
    value = {"schema": 1, "model": "model.onnx", "devices": {name: {**one} for name, one in devices.items()}, **rest}
    (folder / "fleet.yaml").write_text(json.dumps(value), encoding="utf-8")
    return folder / "fleet.yaml"


def make_borders(fleet_file: Path, store: Store) -> dict[str, tuple[BuildContext, Border]]:
    """Device → its quantized border model, with its layers ranked."""
    options = BuildOptions(cache=store.root)
    fleet, jobs, _ = plan_fleet(fleet_file, options)
    source, _ = read_source(fleet, jobs)
    made = {}
    for job in jobs:
        name = job.device.name
        context = share_batch(BuildContext(job, source.prepared[name], source.data[name], options, store, Clock(name)))
        border = make_candidate_border(context, settle(job.plan, job.plan.rule, "asked for"), Variant())
        rank_layers(context, job.plan.rule, Variant(), border.entries)
        made[name] = (context, border)
    return made


def counts(store: Store) -> dict[str, int]:
    return {stage: count for stage, (count, _) in store.info().stages.items()}


def worst_db(context: BuildContext, border: Border) -> float:
    """Of the border model against the imported one, on the device's own inputs."""
    inputs = context.ready.inputs.probe
    errors = compare_all(run_unoptimized(context.ready.model, inputs), run_unoptimized(border.load(), inputs))
    return min(error.sqnr_db for error in errors.values())


def test_two_batches_are_observed_quantized_and_ranked_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    made = make_borders(write_fleet(tmp_path, NET, {"single": SINGLE, "three": THREE, "ranged": RANGED}), store)
    found = counts(store)
    assert {stage: found[stage] for stage in ("calibrate", "quantize", "sensitivity")} == {
        "calibrate": 1,
        "quantize": 1,
        "sensitivity": 1,
    }
    sizes = {name: border.load().graph.inputs[0].shape[0] for name, (_, border) in made.items()}  # type: ignore[index]
    assert sizes["single"] == 1 and sizes["three"] == 3 and not isinstance(sizes["ranged"], int)
    assert all(worst_db(*one) > 20 for one in made.values())


@pytest.mark.parametrize(("text", "runs"), [(NET, 2), (SHAPED, 3)])
def test_a_model_runs_once_on_a_data_set_whatever_the_batch(tmp_path: Path, text: str, runs: int) -> None:
    store = Store(tmp_path / "cache")
    made = make_borders(write_fleet(tmp_path, text, {"single": SINGLE, "ranged": RANGED}), store)
    for context, border in made.values():
        data, plan = context.data.calibration, context.job.plan
        assert data is not None
        run = for_data_sets(context, settle(plan, plan.rule, "asked for"), border)
        original = model_outputs(*context.original, data, context.stages)
        own = model_outputs(run.load(), run.digest, data, context.stages)
        assert {name: array.shape for name, array in own.items()} == {"y": (24, 4)} and len(original["y"]) == 24
        (stats,) = compare_all(
            model_outputs(border.load(), border.digest, data, Stages(Store(tmp_path / "x"))), own
        ).values()
        assert stats.sqnr_db > 60
    assert counts(store)["outputs"] == runs + (text == SHAPED), "of the imported model, and of the border models"


def test_a_device_has_the_same_border_model_alone_and_in_a_fleet(tmp_path: Path) -> None:
    alone = make_borders(write_fleet(tmp_path / "a", NET, {"single": SINGLE}), Store(tmp_path / "one"))
    both = make_borders(write_fleet(tmp_path / "b", NET, {"ranged": RANGED, "single": SINGLE}), Store(tmp_path / "two"))
    assert alone["single"][1].path.read_bytes() == both["single"][1].path.read_bytes()


@pytest.mark.parametrize("devices", [{"single": SINGLE, "ranged": RANGED}, {"three": THREE}])
def test_a_graph_that_the_batch_decides_is_right_for_every_device(
    tmp_path: Path, devices: Mapping[str, Mapping[str, object]]
) -> None:
    made = make_borders(write_fleet(tmp_path, SHAPED, devices), Store(tmp_path / "cache"))
    assert all(worst_db(*one) > 20 for one in made.values())
