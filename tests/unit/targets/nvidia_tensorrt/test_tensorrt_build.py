"""Engines built with no GPU: what is written, what is read back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorrt_cases import Build, conv_net, text_model

from compiler.errors import FleetError, ToolchainFailed, UnsupportedModel
from compiler.fleet import Range
from compiler.model.spec import TensorSpec

pytestmark = pytest.mark.needs_tensorrt

BATCH = Range(1, 4, 16)


@pytest.mark.parametrize("compute_capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_an_engine_is_built_for_every_supported_compute_capability(build: Build, compute_capability: str) -> None:
    artifact = build(conv_net(), compute_capability, batch=BATCH)
    engine = artifact.root / "payload/model.engine"
    assert artifact.files == ("payload/model.engine",)
    assert engine.stat().st_size == artifact.facts["engine_bytes"] > 1000
    assert artifact.facts["compute_capability"] == compute_capability
    assert not artifact.deferred


def test_only_the_engine_is_left_in_the_payload(build: Build, tmp_path: Path) -> None:
    build(conv_net(), batch=BATCH)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "payload/model.engine"
    ]


def test_an_engine_is_named_non_reproducible_with_a_reason(build: Build) -> None:
    assert set(build(conv_net(), batch=BATCH).non_reproducible) == {"payload/model.engine"}


def test_inputs_and_outputs_are_read_back_with_their_open_dimensions_named(build: Build) -> None:
    artifact = build(conv_net(), batch=BATCH)
    assert artifact.inputs == (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
    assert artifact.outputs == (TensorSpec("y", "float32", ("batch", 4, 1, 1)),)
    assert artifact.facts["io_read_from"] in ("network definition", "engine")


def test_a_range_becomes_the_optimization_profile(build: Build) -> None:
    ranges = build(conv_net(), batch=BATCH).facts["ranges"]
    assert ranges == {"x": {"min": [1, 3, 8, 8], "opt": [4, 3, 8, 8], "max": [16, 3, 8, 8]}}


def test_a_static_model_needs_no_range(build: Build) -> None:
    artifact = build(text_model("g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }"))
    assert artifact.facts["ranges"] == {}
    assert artifact.inputs[0].shape == (2, 4)


def test_two_open_dimensions_keep_their_own_ranges(build: Build) -> None:
    model = text_model("g (float[n, seq, 4] x) => (float[n, seq, 4] y) { y = Relu(x) }")
    artifact = build(model, n=Range(1, 1, 2), seq=Range(1, 8, 128))
    assert artifact.facts["ranges"] == {"x": {"min": [1, 1, 4], "opt": [1, 8, 4], "max": [2, 128, 4]}}


def test_an_open_dimension_without_a_range_is_an_error_that_names_it(build: Build) -> None:
    with pytest.raises(FleetError, match="none was given for batch"):
        build(conv_net())


def test_a_float16_graph_is_built_as_its_types_say(build: Build) -> None:
    artifact = build(conv_net(np.float16), "7.5", precision="fp16", batch=BATCH)
    assert artifact.precision == "fp16"
    assert artifact.inputs[0].dtype == artifact.outputs[0].dtype == "float16"


def test_a_bfloat16_graph_with_float32_borders_is_built_from_ampere_on(build: Build) -> None:
    model = text_model(
        "g (float[batch, 4] x) => (float[batch, 4] y)"
        " { a = Cast<to = 16>(x) b = Cast<to = 16>(w) p = MatMul(a, b) y = Cast<to = 1>(p) }",
        {"w": np.eye(4, dtype=np.float32)},
    )
    assert build(model, "8.0", precision="bf16", batch=BATCH).outputs[0].dtype == "float32"


def test_integers_and_booleans_keep_their_types(build: Build) -> None:
    text = "g (int64[2] a, bool[2] b, float[2] c) => (int64[2] x, bool[2] y, int32[2] z)"
    artifact = build(text_model(text + " { x = Add(a, a) y = Not(b) z = Cast<to = 6>(c) }"))
    assert [spec.dtype for spec in artifact.inputs] == ["int64", "bool", "float32"]
    assert [spec.dtype for spec in artifact.outputs] == ["int64", "bool", "int32"]


def test_an_input_nobody_reads_is_still_an_input(build: Build) -> None:
    artifact = build(text_model("g (float[2] a, float[2] unused) => (float[2] y) { y = Relu(a) }"))
    assert [spec.name for spec in artifact.inputs] == ["a", "unused"]


def test_every_refused_node_is_told_at_once_with_name_and_operator(build: Build) -> None:
    text = "g (float[2, 3, 4, 4] x) => (float[2, 3] p, float[2, 3, 4, 4] q)"
    with pytest.raises(UnsupportedModel) as caught:
        build(text_model(text + " { [first] p = Det(x) r = Relu(x) [second] q = NoSuchOperator(r) }"))
    assert "Det 'first'" in caught.value.what
    assert "NoSuchOperator 'second'" in caught.value.what


def test_an_int32_bias_between_quantizers_is_refused(build: Build) -> None:
    weights = {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.zeros(4, np.int32), "s": np.float32(0.1)}
    text = "g (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) { [bias] d = DequantizeLinear(b, s) y = Conv(x, w, d) }"
    with pytest.raises(UnsupportedModel, match="DequantizeLinear 'bias'"):
        build(text_model(text, weights))


def test_an_input_whose_values_are_a_shape_is_refused(build: Build) -> None:
    text = "g (float[2, 8] x, int64[2] to) => (float[a, b] y) { y = Reshape(x, to) }"
    with pytest.raises(UnsupportedModel, match="Input 'to': its values decide shapes"):
        build(text_model(text))


def test_a_builder_failure_carries_the_end_of_its_log(build: Build) -> None:
    model = text_model("g (float[2, 4] x) => (float[2, 4] y) { y = MatMul(x, w) }", {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(ToolchainFailed, match=r"(?s)compute capability 7\.5.*FP32 GEMM is not supported"):
        build(model, "7.5")


def test_attention_without_a_kernel_of_its_own_is_built_from_its_parts(build: Build) -> None:
    heads = "float[batch, 2, 5, 8]"
    text = f"g ({heads} q, {heads} k, {heads} v) => ({heads} y) {{ y = Attention(q, k, v) }}"
    assert build(text_model(text, opset=23), batch=BATCH).facts["engine_bytes"] > 1000


def test_facts_are_json_values_and_hold_no_path(build: Build, tmp_path: Path) -> None:
    text = json.dumps(dict(build(conv_net(), batch=BATCH).facts))
    assert str(tmp_path) not in text
    assert json.loads(text)["weights_bytes"] == 4 * 3 * 3 * 3 * 4


def test_weights_in_a_file_beside_the_model_are_read_from_there(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.nvidia_tensorrt.network.EXTERNAL_ABOVE_BYTES", 64)
    artifact = build(conv_net(channels=64), batch=BATCH)
    assert artifact.facts["weights_bytes"] == 64 * 3 * 3 * 3 * 4
    assert artifact.facts["engine_bytes"] > 1000


def test_the_logger_prints_nothing(build: Build, capfd: pytest.CaptureFixture[str]) -> None:
    build(conv_net(), batch=BATCH)
    assert capfd.readouterr() == ("", "")
