"""Options, capabilities, deferral, and what is said where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorrt_cases import Build, conv_net, gpu_profile, text_model

from compiler.artifact import Evidence
from compiler.errors import DataError, ProfileError, TargetUnavailable, ToolchainFailed
from compiler.fleet import Range
from compiler.fleet.profile import list_profiles, load_profile
from compiler.target import find_target
from compiler.target.capability import find_unsupported
from targets.nvidia_tensorrt import TARGET, network, signature
from targets.nvidia_tensorrt.rules import capability_of

BATCH = Range(1, 4, 16)


def test_the_entry_point_gives_this_target() -> None:
    assert find_target("tensorrt") is TARGET


@pytest.mark.parametrize("name", [name for name in list_profiles() if load_profile(name).target == "tensorrt"])
def test_every_built_in_nvidia_profile_has_valid_options(name: str) -> None:
    assert TARGET.capability(load_profile(name)).precisions


@pytest.mark.parametrize("compute_capability", ["8.7", "9.0"])
def test_tensorrt_rtx_refuses_other_compute_capabilities_and_tells_the_remedy(compute_capability: str) -> None:
    with pytest.raises(ProfileError, match=r"7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1.*`library: tensorrt`"):
        TARGET.capability(gpu_profile(compute_capability))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capability": 8.9}, "8.9"),
        ({"compute_capability": "sm89"}, "sm89"),
        ({"compute_capability": "8.9", "library": "trt"}, "tensorrt-rtx"),
        ({"compute_capability": "8.9", "libary": "tensorrt"}, "library"),
        ({}, "required"),
    ],
)
def test_wrong_options_are_refused_with_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        TARGET.capability(replace(gpu_profile(), target_options=options))


def test_turing_prefers_half_precision_because_it_has_no_float32_products() -> None:
    capability = capability_of("tensorrt-rtx", "7.5", tf32=False)
    assert [rule.name for rule in capability.precisions] == ["fp16", "fp32", "int8", "int4-weights"]
    assert "bf16" in capability.precision_refusals
    model = text_model("g (float[2, 4] x) => (float[2, 4] y) { y = MatMul(x, x2) x2 = Transpose(x) }")
    assert [refusal.op for refusal in find_unsupported(model, capability)] == ["MatMul"]


def test_ampere_and_newer_have_bfloat16_and_float32_products() -> None:
    capability = capability_of("tensorrt-rtx", "8.0", tf32=False)
    assert [rule.name for rule in capability.precisions] == ["fp32", "fp16", "bf16", "int8", "int4-weights"]
    assert "FLOAT" in capability.ops["MatMul"].dtypes


def test_tf32_is_off_unless_asked_for_and_then_judged_as_half_precision() -> None:
    off, on = (capability_of("tensorrt-rtx", "8.9", tf32=tf32).precisions[0] for tf32 in (False, True))
    assert (off.name, off.tolerance) == ("fp32", "fp32")
    assert (on.name, on.tolerance) == ("fp32", "fp16")


def test_double_and_string_and_asymmetric_quantization_are_refused_by_type() -> None:
    ops = capability_of("tensorrt-rtx", "8.9", tf32=False).ops
    assert not any({"DOUBLE", "STRING"} & rule.dtypes or not rule.dtypes for rule in ops.values())
    assert not {"UINT8", "INT32"} & (ops["QuantizeLinear"].dtypes | ops["DequantizeLinear"].dtypes)


@pytest.mark.needs_tensorrt
def test_every_claimed_operator_is_known_to_the_parser() -> None:
    import tensorrt_rtx as trt

    log = network.recorder("tensorrt-rtx")
    builder = trt.Builder(log)
    parser = trt.OnnxParser(builder.create_network(0), log)
    claimed = capability_of("tensorrt-rtx", "8.9", tf32=False).ops
    assert [name for name in claimed if not parser.supports_operator(name)] == []


def test_a_build_that_needs_the_gpu_is_deferred_with_the_reason_and_the_ranges(build: Build) -> None:
    artifact = build(conv_net(), "9.0", library="tensorrt", batch=BATCH)
    if not artifact.deferred:
        pytest.skip("this machine has TensorRT and a GPU of compute capability 9.0")
    assert "GPU of compute capability 9.0" in artifact.deferred
    assert "fleetc finish" in artifact.deferred
    assert artifact.files == ()
    assert artifact.facts["ranges"] == {"x": {"min": [1, 3, 8, 8], "opt": [4, 3, 8, 8], "max": [16, 3, 8, 8]}}
    assert [spec.name for spec in (*artifact.inputs, *artifact.outputs)] == ["x", "y"]
    with pytest.raises(TargetUnavailable, match="not complete"):
        TARGET.load(artifact)


def test_a_deferrable_profile_passes_the_check_on_any_machine() -> None:
    TARGET.check(gpu_profile("9.0", library="tensorrt"))


@pytest.mark.needs_tensorrt
def test_loading_without_a_gpu_says_what_is_missing(build: Build) -> None:
    artifact = build(conv_net(), "12.1", batch=BATCH)
    try:
        TARGET.load(artifact).close()
    except TargetUnavailable as reason:
        assert "NVIDIA" in reason.what
        assert reason.remedy
    else:
        pytest.skip("this machine has a GPU of compute capability 12.1")


@pytest.mark.needs_gpu
@pytest.mark.needs_tensorrt
def test_an_engine_gives_what_the_model_gives_at_every_batch(build: Build, gpu: str, tmp_path: Path) -> None:
    import onnx_ir as ir
    import onnxruntime

    model = conv_net()
    artifact = build(model, gpu, batch=BATCH)
    assert artifact.facts["io_read_from"] == "engine"
    ir.save(model, tmp_path / "model.onnx")
    oracle = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    runner = TARGET.load(artifact)
    assert runner.evidence is Evidence.HOST
    for batch in (1, 4, 16):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(runner.run({"x": x})["y"], oracle.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="does not take"):
        runner.run({"x": np.zeros((17, 3, 8, 8), np.float32)})
    runner.close()


def test_a_signature_that_differs_in_name_type_or_size_is_refused_with_every_difference() -> None:
    wanted = signature.model_signature(conv_net())
    x, y = wanted.inputs[0], wanted.outputs[0]
    found = signature.Signature(
        (replace(x, shape=("?", 1, 8, 8)),), (replace(y, name="z"), replace(y, dtype="float16"))
    )
    with pytest.raises(ToolchainFailed) as caught:
        signature.agree(wanted, found, source="engine")
    for part in ("input 'x' should be float32[batch, 3, 8, 8], is float32[?, 1, 8, 8]", "'z'", "float16"):
        assert part in caught.value.what


def test_a_size_that_only_tensorrt_knows_replaces_the_open_dimension() -> None:
    wanted = signature.model_signature(conv_net())
    found = replace(wanted, outputs=(replace(wanted.outputs[0], shape=(2, "?", 1, 1)),))
    assert signature.agree(wanted, found, source="engine").outputs[0].shape == (2, 4, 1, 1)


def test_eight_bit_floats_are_offered_from_ada_on() -> None:
    assert "fp8" in {rule.name for rule in capability_of("tensorrt-rtx", "8.9", tf32=False).precisions}
    refused = capability_of("tensorrt-rtx", "8.6", tf32=False).precision_refusals
    assert "8.9 and newer" in refused["fp8"]


def test_schemes_are_symmetric_and_leave_biases_float() -> None:
    for rule in capability_of("tensorrt-rtx", "8.9", tf32=False).precisions:
        for op in rule.scheme.ops.values() if rule.scheme else ():
            assert op.float_bias and all(one.symmetric for one in (*op.inputs.values(), *op.weights.values()))
