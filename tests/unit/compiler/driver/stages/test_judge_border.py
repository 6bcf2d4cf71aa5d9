"""A border model is judged against the imported one, by the level of what it was changed to."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import Parity, Reference
from compiler.driver.stages.border import Border
from compiler.driver.stages.border_parity import border_level, hold_to_model, judge_border
from compiler.driver.stages.candidate import _reference
from compiler.driver.stages.inputs import BuildStart, VerificationInputs
from compiler.driver.stages.proof import weak_proofs
from compiler.driver.stages.reference import ParityCase, reference_cases
from compiler.driver.stages.run import Stages
from compiler.errors import GateFailed
from compiler.model.graph import graph_digest
from compiler.passes.decompose_quantized import DECOMPOSE_QUANTIZED
from compiler.plan import BuildOptions, Plan
from compiler.plan.jobs import plan_fleet
from compiler.plan.pruning import Pruning
from compiler.store import Store
from tests.unit.compiler.passes.pass_cases import recurrent

X = np.array([[0.1, -0.2, 0.3], [1.0, -2.0, 3.0]], np.float32)


def read(body: str, kind: str = "float") -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}[2,3] x) => ({kind}[2,3] y, int64[2,1] i) {{ '
        f"{body} i = ArgMax <axis = 1> (y) }}"
    )


def plan_for(folder: Path, model: ir.Model, precision: str) -> Plan:
    ir.save(model, folder / "model.onnx")
    fleet = folder / "fleet.yaml"
    fleet.write_text("schema: 1\nmodel: model.onnx\ncalibration: {path: x.npy}\ndevices: {gpu: {profile: nvidia-l4}}\n")
    np.save(folder / "x.npy", X)
    _, (job,), _ = plan_fleet(fleet, BuildOptions(cache=folder / "cache", precision=precision))
    return job.plan


def judge(folder: Path, body: str, *, precision: str, pruned: float = 0.0) -> Parity:
    """Judges a border model of that body against y = x."""
    model, border = read("y = Identity (x)"), read(body)
    plan = plan_for(folder, model, precision)
    plan = replace(plan, pruning=Pruning(pruned, False, "")) if pruned else plan
    ir.save(border, folder / "border.onnx")
    ready = BuildStart(model, graph_digest(model), VerificationInputs({"fixed": {"x": X}}, {"x": X}, "file", ()))
    made = Border(folder / "border.onnx", graph_digest(border), (), ())
    stages = Stages(Store(folder / "cache"))
    imported = reference_cases(model, ready.digest, ready.inputs.points, stages)
    return judge_border(made, plan, ready, imported, where="gpu", stages=stages)


def test_layers_that_quantize_at_each_step_may_compute_in_floats_and_nothing_else_may_change(tmp_path: Path) -> None:
    """The imported model is no surer of its own results; the artifact is then compared with the border model."""
    model, stages = recurrent(), Stages(Store(tmp_path / "cache"))
    points = {"fixed": {"h0": np.random.default_rng(1).standard_normal((40, 1, 8)).astype(np.float32)}}
    ready = BuildStart(model, graph_digest(model), VerificationInputs(points, points["fixed"], "file", ()))
    imported, plan = reference_cases(model, ready.digest, points, stages), plan_for(tmp_path, model, "fp32")

    def judged(factor: float) -> Parity:
        border = recurrent()
        DECOMPOSE_QUANTIZED(border)
        weights = border.graph[-2].inputs[2]
        assert weights is not None and weights.const_value is not None
        weights.const_value = ir.tensor(weights.const_value.numpy() * np.float32(factor), name=weights.name)
        path = tmp_path / f"{factor}.onnx"
        ir.save(border, path)
        made = Border(path, graph_digest(border), (), ())
        return judge_border(made, plan, ready, imported, where="gpu", stages=stages)

    parity = judged(1.0)
    assert parity.worst_sqnr_db is not None and 3 <= parity.worst_sqnr_db < 20
    assert parity.tolerance == "quantized" and "the reference's own outputs move by" in parity.reason
    assert _reference(plan, parity) == Reference.BORDER_MODEL
    with pytest.raises(GateFailed, match="differs from the imported model"):
        judged(-1.0)


SCALE = "f = Constant <value = float {%s}> () y = Mul (x, f)"


@pytest.mark.parametrize(
    ("precision", "body"),
    [
        ("fp32", SCALE % "1.01"),
        ("fp32", SCALE % "-1.0"),
        ("fp16", SCALE % "1.1"),
        ("int8", SCALE % "0.0"),
        ("int8", SCALE % "8.0"),
        ("int8", "z = Constant <value = float {0.0}> () n = Div (z, z) y = Add (x, n)"),
    ],
)
def test_border_model_outside_its_level_fails_the_device(tmp_path: Path, precision: str, body: str) -> None:
    """A float16 border model of NaN, and a quantized one at -17 dB, were delivered where nothing could run them."""
    with pytest.raises(GateFailed, match="the border model differs from the imported model"):
        judge(tmp_path, body, precision=precision)


@pytest.mark.parametrize(
    ("precision", "body", "level"),
    [
        ("fp32", SCALE % "1.0", "fp32"),
        ("fp32", SCALE % "1.0001", "fp32"),
        ("fp16", SCALE % "1.01", "fp16"),
        ("int8", SCALE % "0.7", "quantized"),
    ],
)
def test_border_model_inside_its_level_passes_with_its_figures(
    tmp_path: Path, precision: str, body: str, level: str
) -> None:
    verdict = judge(tmp_path, body, precision=precision)
    assert (verdict.status, verdict.evidence, verdict.tolerance) == ("passed", Evidence.HOST, level)
    assert set(verdict.points[0].outputs) == ({"y"} if level == "quantized" else {"y", "i"})


def test_integers_may_differ_where_results_are_changed_on_purpose_only(tmp_path: Path) -> None:
    """An arg max between near equals goes the other way in 8 bits."""
    other = "o = Constant <value = float[3] {2.0, 0.0, -2.0}> () y = Add (x, o)"
    with pytest.raises(GateFailed, match="output 'i'"):
        judge(tmp_path, other, precision="fp32")
    flipped = "o = Constant <value = float[3] {0.21, 0.0, 0.0}> () y = Add (x, o)"
    judge(tmp_path, flipped, precision="int8")


def test_pruned_model_need_only_compute_numbers(tmp_path: Path) -> None:
    assert judge(tmp_path, SCALE % "-3.0", precision="fp32", pruned=0.5).tolerance == "pruned"
    with pytest.raises(GateFailed, match="NaN or an infinity on one side alone"):
        judge(
            tmp_path,
            "z = Constant <value = float {0.0}> () n = Div (z, z) y = Add (x, n)",
            precision="fp32",
            pruned=0.5,
        )


@pytest.mark.parametrize(("kind", "level"), [("float", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")])
def test_a_plan_has_the_tolerance_of_the_imported_models_own_arithmetic(tmp_path: Path, kind: str, level: str) -> None:
    model = read("y = Identity (x)", kind)
    plan = plan_for(tmp_path, model, "fp32")
    held = hold_to_model(plan, model)
    assert held.tolerance == held.decisions["tolerance"].value == level
    assert border_level(plan, model).name == level


def test_coarser_tolerance_of_the_precision_stays(tmp_path: Path) -> None:
    model = read("y = Identity (x)", "float16")
    plan = plan_for(tmp_path, model, "bf16")
    assert hold_to_model(plan, model) is plan


def points(*rows: object, inputs: object = ((1, 2), (3, 4))) -> list[ParityCase]:
    return [ParityCase("fixed", {"x": np.array(inputs, np.float32)}, {"y": np.array(row, np.float32)}) for row in rows]


def test_an_output_that_depends_on_the_samples_is_a_proof() -> None:
    assert weak_proofs(points([[1, 2], [3, 4]]), is_random=False) == ()


@pytest.mark.parametrize("value", [0.0, 7.0, math.nan])
def test_output_of_one_value_is_no_proof(value: float) -> None:
    (sentence,) = weak_proofs(points(np.full((2, 2), value), np.full((2, 2), value)), is_random=False)
    assert "every element has the same value" in sentence


def test_output_that_is_the_same_for_different_samples_is_no_proof() -> None:
    same = [[1, 2], [1, 2]]
    (sentence,) = weak_proofs(points(same), is_random=False)
    assert "the same for different samples" in sentence
    assert weak_proofs(points(same, inputs=[[1, 1], [1, 1]]), is_random=False) == ()


def test_scalar_output_of_one_point_is_not_judged() -> None:
    assert weak_proofs(points(3.0), is_random=False) == ()
