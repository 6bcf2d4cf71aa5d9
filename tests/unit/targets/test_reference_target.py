from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.artifact import Artifact, Evidence
from compiler.errors import DataError, UnsupportedModel
from compiler.fleet.profile import HardwareProfile
from compiler.target import TargetPlan, find_target
from compiler.target.capability import find_unsupported
from compiler.target.testing import Case, text_case
from targets.reference import TARGET, Options

_PROFILE = HardwareProfile(schema=1, name="any", target="reference")
_NET = text_case(
    "net", "(float[N,4] x) => (float[N,2] y, bool[N,2] p) { y = Gemm(x, w, b) p = Greater(y, b) }",
    weights={"w": (4, 2), "b": (2,)}, batches=(1, 2, 3),
)  # fmt: skip


def _build(folder: Path, case: Case = _NET) -> Artifact:
    return TARGET.build(case.model(), TargetPlan("fp32", Options(), dims=case.dims), _PROFILE, workdir=folder)


def test_inputs_and_outputs_are_read_back(tmp_path: Path) -> None:
    artifact = _build(tmp_path)
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*artifact.inputs, *artifact.outputs)] == [
        ("x", "float32", ("N", 4)),
        ("y", "float32", ("N", 2)),
        ("p", "bool", ("N", 2)),
    ]


def test_the_same_model_gives_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    first, second = _build(tmp_path / "a"), _build(tmp_path / "b")
    assert first.files == ("payload/model.onnx",)
    assert (first.root / first.files[0]).read_bytes() == (second.root / second.files[0]).read_bytes()


def test_runner_computes_what_numpy_does_and_repeats_it(tmp_path: Path) -> None:
    runner = TARGET.load(_build(tmp_path))
    weights = {value.name: value.const_value.numpy() for value in _NET.model().graph.initializers.values()}
    x = _NET.inputs[1]["x"]
    found = runner.run({"x": x})
    np.testing.assert_allclose(found["y"], x @ weights["w"] + weights["b"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["y"], runner.run({"x": x})["y"])
    assert runner.evidence is Evidence.HOST


@pytest.mark.parametrize("inputs", [{}, {"x": np.zeros((2, 5), np.float32)}, {"x": np.zeros((2, 4), np.float64)}])
def test_inputs_that_do_not_fit_are_a_data_error(inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not run these inputs"):
        TARGET.load(_build(tmp_path)).run(inputs)


def test_operator_without_a_kernel_is_refused_by_the_build(tmp_path: Path) -> None:
    case = text_case("int16", "(int16[3] a, int16[3] b) => (int16[3] y) { y = Max(a, b) }")
    with pytest.raises(UnsupportedModel, match="Max"):
        _build(tmp_path, case)


def test_operators_of_microsofts_domain_are_run(tmp_path: Path) -> None:
    """It is ONNX Runtime itself: models of its quantizer and optimizer were refused."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> g (float[2,3] x) => (float[2,3] y)
        { y = com.microsoft.QuickGelu<alpha = 2.0>(x) }"""
    )
    assert find_unsupported(model, TARGET.capability(_PROFILE)) == ()
    x = np.array([[0.1, -0.2, 0.3], [1.0, -2.0, 3.0]], np.float32)
    found = TARGET.load(TARGET.build(model, TargetPlan("fp32", Options()), _PROFILE, workdir=tmp_path)).run({"x": x})
    np.testing.assert_allclose(found["y"], x / (1 + np.exp(-2 * x)), rtol=1e-5, atol=1e-6)


def test_capability_names_only_operators_onnxruntime_has_or_can_expand() -> None:
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = {
        f"{kernel.domain}::{kernel.op_name}" if kernel.domain else kernel.op_name
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == "CPUExecutionProvider"
    }
    schemas = {schema.name: schema for schema in onnx.defs.get_all_schemas() if not schema.domain}
    expandable = {
        name
        for name, schema in schemas.items()
        if schema.has_function or schema.has_context_dependent_function or name == "Constant"
    }
    assert set(TARGET.capability(_PROFILE).ops) - kernels - expandable == set()


def test_asking_what_it_can_imports_no_onnxruntime() -> None:
    code = (
        "import sys; from targets.reference import TARGET; from compiler.fleet.profile import HardwareProfile as P;"
        "p = P(schema=1, name='a', target='reference'); TARGET.capability(p); TARGET.check(p); TARGET.toolchain();"
        "print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_target_is_found_by_its_name() -> None:
    assert find_target("reference") is TARGET
