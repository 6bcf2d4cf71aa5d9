"""Each target gets the operators that it has: what passes fuse for one is written out again for another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.driver.stages.border import Border, make_border
from compiler.driver.stages.run import Stages
from compiler.model.graph import graph_digest
from compiler.model.numerics import TOLERANCES, compare
from compiler.passes.probe import run_unoptimized
from compiler.plan import BuildOptions
from compiler.plan.jobs import plan_fleet
from compiler.store import Store
from compiler.target.capability import Capability, OpRule

EVERYTHING = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}

GELU = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y)
<float h = {0.5}, float o = {1}, float r = {1.4142135}>
{ a = Div (x, r) b = Erf (a) c = Add (b, o) d = Mul (x, c) y = Mul (d, h) }"""

LOOP = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y) <int64 n = {3}, bool c = {1}>
{ y = Loop (n, c, x) <body = b (int64 i, bool k, float[2,3] v) => (bool k2, float[2,3] w)
  { k2 = Identity (k) w = Add (v, x) }> }"""


def without(*operators: str) -> Capability:
    return Capability(
        ops={name: OpRule() for name in EVERYTHING - set(operators)}, precisions=(), dynamic_dims=True, opset_max=24
    )


def border(folder: Path, text: str, capability: Capability) -> Border:
    model = ir.from_onnx_text(text)
    ir.save(model, folder / "model.onnx")
    (folder / "fleet.yaml").write_text(
        "schema: 1\nmodel: model.onnx\ndevices: {kiosk: {profile: intel-n100}}\n", encoding="utf-8"
    )
    options = BuildOptions(cache=folder / "cache", skip_passes=("simplify-onnxsim",))
    _, (job,), _ = plan_fleet(folder / "fleet.yaml", options)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    made = make_border(
        model,
        graph_digest(model),
        job.plan,
        (),
        inputs=inputs,
        stages=Stages(Store(folder / "cache")),
        capability=capability,
    )
    expected, actual = run_unoptimized(model, inputs)["y"], run_unoptimized(made.load(), inputs)["y"]
    assert TOLERANCES["fp32"].accepts(compare(expected, actual))
    return made


@pytest.mark.parametrize(("text", "operator"), [(GELU, "Gelu"), (LOOP, "Loop")])
def test_devices_share_the_rewritten_model_and_each_gets_its_own_operators(
    tmp_path: Path, text: str, operator: str
) -> None:
    has_it, lacks_it = border(tmp_path, text, without()), border(tmp_path, text, without(operator))
    assert operator in [node.op_type for node in has_it.load().graph]
    assert operator not in [node.op_type for node in lacks_it.load().graph]
    assert has_it.entries[0].digest == lacks_it.entries[0].digest
    names = [record["name"] for record in lacks_it.records]
    assert names[-2:] == ["unroll-loops", "decompose-operators"]
    assert not any(record["left_out"] for record in lacks_it.records)


def test_targets_that_lack_different_operators_do_not_share_a_border_model(tmp_path: Path) -> None:
    first, second = border(tmp_path, GELU, without("Gelu")), border(tmp_path, GELU, without("Gelu", "Sum"))
    assert "Sum" in [node.op_type for node in first.load().graph]
    assert {"Gelu", "Sum"} & {node.op_type for node in second.load().graph} in ({"Gelu"}, set())


def test_a_model_that_a_target_takes_as_it_is_has_no_further_stage(tmp_path: Path) -> None:
    assert len(border(tmp_path, GELU, without()).entries) == 1
