"""The target `onnxruntime`: the border model with the settings of its session."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.fleet.profile import Cpu, HardwareProfile
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.probe import run_unoptimized
from compiler.target import Artifact, DataError, TargetPlan, TargetUnavailable, UnsupportedModel
from compiler.target.capability import find_unsupported
from compiler.target.testing import conformance_cases, run_case
from targets.onnxruntime_cpu import TARGET, Options

X = np.array([[0.1, -0.2, 0.3], [1.0, -2.0, 3.0]], np.float32)


def profile(*isa: str) -> HardwareProfile:
    cpu = Cpu(model="any", cores=4, isa=isa)
    return HardwareProfile(schema=1, name="board", target="onnxruntime", cpu=cpu)


def read(text: str, domain: str = "") -> ir.Model:
    imports = '"" : 21' + (f', "{domain}" : 1' if domain else "")
    return ir.from_proto(onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {text}"))


def build(model: ir.Model, folder: Path, *, threads: int | None = None) -> Artifact:
    plan = TargetPlan(precision="fp32", options=Options(threads), dims={}, threads=3, cache_dir=folder / "cache")
    return TARGET.build(model, plan, profile("avx2"), workdir=folder)


def test_artifact_is_the_model_and_the_settings_of_its_session(tmp_path: Path) -> None:
    artifact = build(read("(float[n,3] x) => (float[n,3] y) { y = Tanh (x) }"), tmp_path)
    assert artifact.files == ("payload/model.onnx", "payload/config.json")
    settings = json.loads((tmp_path / "payload/config.json").read_text())
    assert settings == {"inter_op_num_threads": 1, "intra_op_num_threads": 3}
    assert [(spec.name, spec.dtype, spec.shape) for spec in artifact.inputs] == [("x", "float32", ("n", 3))]


def test_threads_of_the_options_go_before_the_plans(tmp_path: Path) -> None:
    build(read("(float[2,3] x) => (float[2,3] y) { y = Tanh (x) }"), tmp_path, threads=1)
    assert json.loads((tmp_path / "payload/config.json").read_text())["intra_op_num_threads"] == 1


def test_operators_of_microsofts_domain_are_built_and_run(tmp_path: Path) -> None:
    """All other targets but the reference refuse them."""
    model = read("(float[2,3] x) => (float[2,3] y) { y = com.microsoft.QuickGelu (x) }", "com.microsoft")
    assert find_unsupported(model, TARGET.capability(profile())) == ()
    runner = TARGET.load(build(model, tmp_path))
    expected = run_unoptimized(model, {"x": X})
    assert TOLERANCES["fp32"].accepts(compare_all(expected, runner.run({"x": X}))["y"])
    runner.close()


def test_operators_without_a_kernel_are_refused() -> None:
    model = read("(float[2,3] x) => (float[2,3] y) { y = com.microsoft.GroupNorm (x) }", "com.microsoft")
    assert [refusal.op for refusal in find_unsupported(model, TARGET.capability(profile()))] == [
        "com.microsoft::GroupNorm"
    ]


def test_inputs_that_do_not_fit_are_data_errors(tmp_path: Path) -> None:
    runner = TARGET.load(build(read("(float[2,3] x) => (float[2,3] y) { y = Tanh (x) }"), tmp_path))
    with pytest.raises(DataError, match="does not run these inputs"):
        runner.run({"x": np.zeros((5, 5), np.float32)})


def test_model_that_onnx_runtime_refuses_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="ONNX Runtime does not run the model"):
        build(read("(int16[2,3] x) => (int16[2,3] y) { y = Tanh (x) }"), tmp_path)


@pytest.mark.parametrize(
    ("isa", "has_int8"),
    [(("avx2", "avx_vnni"), True), (("avx512_vnni",), True), (("asimd",), True), (("avx2",), False), ((), False)],
)
def test_int8_is_offered_where_sums_of_products_do_not_saturate(isa: tuple[str, ...], has_int8: bool) -> None:
    capability = TARGET.capability(profile(*isa))
    assert ("int8" in {rule.name for rule in capability.precisions}) == has_int8
    assert ("int8" in capability.precision_refusals) != has_int8


def test_int8_artifact_is_not_run_where_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.onnxruntime_cpu.host_isa", lambda: frozenset({"avx2"}))
    artifact = Artifact(tmp_path, "onnxruntime", "int8", (), (), (), {})
    with pytest.raises(TargetUnavailable, match="saturate"):
        TARGET.load(artifact)


def test_run_for_an_arm_board_says_whose_kernels_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    plan = TargetPlan(precision="fp32", options=Options(), dims={}, threads=1, cache_dir=tmp_path)
    model = read("(float[2,3] x) => (float[2,3] y) { y = Tanh (x) }")
    artifact = TARGET.build(model, plan, profile("asimd"), workdir=tmp_path)
    assert "kernels for x86_64: the device has others" in TARGET.load(artifact).note


@pytest.mark.parametrize("case", [case for case in conformance_cases() if case.essential], ids=lambda case: case.name)
def test_essential_cases_are_computed(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = run_case(TARGET, profile("avx2"), case, workdir=tmp_path, cache_dir=tmp_path / "cache")
    assert outcome.passed, str(outcome)
