"""A limit on memory reaches the target as the bytes its payload may take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from language_models import SIZE, tiny_decoder

from compiler.driver.stages.kernels import RUNTIME_BYTES, bound_payload
from compiler.errors import FleetError
from compiler.fleet import load_fleet
from compiler.fleet.data import Generation
from compiler.fleet.profile import load_profile
from compiler.plan import BuildOptions, Plan, make_plan
from compiler.target import Target
from targets import onnxruntime_cpu
from targets.arm_tvm import TARGET

MODEL = """<ir_version: 8, opset_import: ["" : 13]>
one (float[1, 8] x, float[8, 1000] w) => (float[1, 1000] y) { y = MatMul(x, w) }"""
WEIGHT_BYTES = 8 * 1000 * 4


def _model() -> ir.Model:
    model = ir.from_onnx_text(MODEL)
    value = model.graph.inputs[1]
    value.const_value = ir.tensor(np.ones((8, 1000), np.float32), name="w")
    model.graph.register_initializer(value)
    model.graph.inputs.remove(value)
    return model


def _plan(folder: Path, limits: str, target: Target = TARGET) -> Plan:
    (folder / "model.onnx").touch()
    (folder / "fleet.yaml").write_text(
        f"schema: 1\nmodel: model.onnx\n{limits}\ndevices: {{a: {{profile: raspberry-pi-5}}}}\n"
    )
    fleet = load_fleet(folder / "fleet.yaml")
    return make_plan(BuildOptions(), fleet.devices["a"], load_profile("raspberry-pi-5"), target, fleet=fleet)


def _spoken(folder: Path, cache: str, *, precision: str, target: Target = TARGET) -> Plan:
    """The plan of a language model."""
    np.save(folder / "text.npy", np.arange(400) % SIZE.vocabulary)
    lines = [
        "calibration: {path: text.npy}",
        "evaluation: {task: generation, path: text.npy}",
        f"generation: {{context: 32, prefill: 16, cache: {cache}}}",
        f"precision: {precision}",
        "limits: {perplexity_increase_pct: 5, memory_mib: 100}",
    ]
    return _plan(folder, "\n".join(lines), target)


def test_a_limit_on_memory_counts_from_the_weights_of_the_model_as_imported(tmp_path: Path) -> None:
    found = bound_payload(_plan(tmp_path, "limits: {memory_reduction_pct: 40}"), _model())
    assert found.target_plan.payload_bytes == int(WEIGHT_BYTES * 0.6)
    assert "memory_reduction_pct is 40" in found.decisions["payload"].reason


def test_a_limit_on_memory_counts_from_the_rewritten_model_as_its_gate_does(tmp_path: Path) -> None:
    rewritten = _model()
    rewritten.graph.initializers["w"].const_value = ir.tensor(np.ones((8, 900), np.float32), name="w")
    ir.save(rewritten, tmp_path / "rewritten.onnx")
    plan = _plan(tmp_path, "limits: {memory_reduction_pct: 40}")
    found = bound_payload(plan, _model(), rewritten=tmp_path / "rewritten.onnx")
    assert found.target_plan.payload_bytes == int(8 * 900 * 4 * 0.6)


def test_without_a_limit_on_memory_the_plan_stays_as_it_is(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "limits: {latency_ms: 40}")
    assert bound_payload(plan, _model()) == plan
    assert plan.target_plan.payload_bytes is None


def test_of_a_language_models_limit_its_cache_and_the_logits_of_a_prompt_are_taken_off(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "limits: {memory_mib: 100}")
    found = bound_payload(plan, tiny_decoder(), Generation(context=32, prefill=16))
    cache = 4 * SIZE.layers * 2 * SIZE.kv_heads * 32 * SIZE.head_width
    logits = 4 * 16 * SIZE.vocabulary
    assert found.target_plan.payload_bytes == (100 << 20) - 2 * cache - logits - RUNTIME_BYTES


@pytest.mark.parametrize(("cache", "row"), [("float32", 4 * SIZE.head_width), ("int8", SIZE.head_width + 4)])
def test_a_cache_in_int8_leaves_more_for_weights(tmp_path: Path, cache: str, row: int) -> None:
    plan = _spoken(tmp_path, cache, precision="int4-weights-int8")
    found = bound_payload(plan, tiny_decoder(), Generation(context=32, prefill=16, cache=cache), in_place=True)
    rows, logits = SIZE.layers * 2 * SIZE.kv_heads * (32 - 1 + 16), 4 * 16 * SIZE.vocabulary
    assert found.target_plan.payload_bytes == (100 << 20) - row * rows - logits - RUNTIME_BYTES
    assert ("cache" in plan.decisions) == plan.rule.scheme.rounds_cache == (cache == "int8")


def test_a_cache_in_int8_goes_with_weights_in_blocks(tmp_path: Path) -> None:
    plan = _spoken(tmp_path, "int8", precision="auto")
    assert [rule.name for rule in plan.candidates] == ["int4-weights-int8"]
    with pytest.raises(FleetError, match="precision int8-weights: its cache is in float32"):
        _spoken(tmp_path, "int8", precision="int8-weights")


def test_a_cache_in_int8_is_refused_where_the_target_has_none(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="target 'onnxruntime' has no cache in int8 for raspberry-pi-5"):
        _spoken(tmp_path, "int8", precision="int4-weights", target=onnxruntime_cpu.TARGET)


def test_a_cache_that_is_written_in_place_is_taken_off_once(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "limits: {memory_mib: 100}")
    found = bound_payload(plan, tiny_decoder(), Generation(context=32, prefill=16), in_place=True)
    row = 4 * SIZE.layers * 2 * SIZE.kv_heads * SIZE.head_width
    logits = 4 * 16 * SIZE.vocabulary
    # a prompt of 16 tokens behind a full context has places of its own
    assert found.target_plan.payload_bytes == (100 << 20) - row * (32 - 1 + 16) - logits - RUNTIME_BYTES
    assert "the cache takes 0.0 MiB" in found.decisions["payload"].reason
