"""The portable half runs the passes the plan says, each under its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.driver.stages.border import Border, make_border
from compiler.driver.stages.run import Stages
from compiler.model.graph import graph_digest
from compiler.passes.pipelines import PORTABLE
from compiler.plan import BuildOptions
from compiler.plan.jobs import plan_fleet
from compiler.store import Store

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[2,3] x) => (float[2,3] y) { a = Identity (x) y = Relu (a) }"""


def border(folder: Path, **options: object) -> Border:
    model = ir.from_onnx_text(MODEL)
    ir.save(model, folder / "model.onnx")
    (folder / "fleet.yaml").write_text(
        "schema: 1\nmodel: model.onnx\ndevices: {kiosk: {profile: intel-n100}}\n", encoding="utf-8"
    )
    _, (job,), _ = plan_fleet(
        folder / "fleet.yaml", BuildOptions(cache=folder / "cache", skip_passes=("simplify-onnxsim",), **options)
    )
    inputs = {"x": np.ones((2, 3), np.float32)}
    return make_border(model, graph_digest(model), job.plan, (), inputs=inputs, stages=Stages(Store(folder / "cache")))


@pytest.mark.parametrize("last", [2, 5, 8])
def test_no_pass_runs_behind_the_one_to_stop_after_even_if_it_comes_twice(tmp_path: Path, last: int) -> None:
    skipped = PORTABLE.index("simplify-onnxsim") + 1
    numbers = [number for number in range(1, last + 1) if number != skipped]
    assert [record["number"] for record in border(tmp_path, stop_after=last).records] == numbers


def test_a_finished_border_is_taken_from_the_store(tmp_path: Path) -> None:
    first, second = border(tmp_path), border(tmp_path)
    assert [entry.hit for entry in (*first.entries, *second.entries)] == [False, True]
    assert first.digest == second.digest
    assert [node.op_type for node in second.load().graph] == ["Relu"]
