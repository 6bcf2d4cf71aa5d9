"""Every pass and the whole pipeline on random graphs: same outputs, valid, truthful, finished after one run."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import models
from hypothesis import HealthCheck, assume, given, settings

from compiler.model.graph import Pass, check_model, graph_digest
from compiler.model.numerics import TOLERANCES
from compiler.passes.pipelines import PORTABLE, load_passes, precision_passes
from compiler.passes.probe import make_probe
from compiler.passes.run import run_passes

CHEAP = load_passes(name for name in PORTABLE if name != "simplify-onnxsim")
EACH = tuple({step.name: step for step in CHEAP}.values())

bounded = settings(
    max_examples=25, deadline=None, print_blob=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("step", EACH, ids=lambda step: step.name)
@bounded
@given(text=models())
def test_pass_keeps_outputs_is_truthful_and_is_done_after_one_run(step: Pass, text: str) -> None:
    model = prepared(text)
    probe, before = make_probe(model), graph_digest(model)
    assume(probe.expected is not None)  # ONNX Runtime loses a value between two Casts that only a branch reads
    result = step(model)
    check_model(model)
    assert TOLERANCES["fp32"].accepts(probe.worst(model))
    assert result.modified == (graph_digest(model) != before)
    assert interface(model) == interface(ir.from_onnx_text(text))
    assert_done(step, model)


@bounded
@given(text=models(steps_max=20))
def test_pipeline_keeps_outputs_and_is_done_after_one_run(text: str) -> None:
    model = ir.from_onnx_text(text)
    probe = make_probe(model)
    assume(probe.expected is not None)
    run_passes(model, CHEAP, probe=probe, check_each=True)
    assert TOLERANCES["fp32"].accepts(probe.worst(model))
    assert interface(model) == interface(ir.from_onnx_text(text))
    once = graph_digest(model)
    run_passes(model, CHEAP)
    assert graph_digest(model) == once


@settings(bounded, max_examples=3)
@given(text=models(steps_max=20))
def test_whole_pipeline_with_onnxsim_keeps_outputs(text: str) -> None:
    model = ir.from_onnx_text(text)
    probe = make_probe(model)
    assume(probe.expected is not None)
    run_passes(model, load_passes(PORTABLE), probe=probe, check_each=True)
    assert TOLERANCES["fp32"].accepts(probe.worst(model))
    assert interface(model) == interface(ir.from_onnx_text(text))


@pytest.mark.parametrize("passes", [precision_passes("fp16"), precision_passes("bf16")], ids=["fp16", "bf16"])
@bounded
@given(text=models())
def test_half_precision_is_valid_and_keeps_the_interface(passes: tuple[Pass, ...], text: str) -> None:
    model = prepared(text)
    run_passes(model, passes[:1], check_each=True)
    assert_done(passes[0], model)
    run_passes(model, passes[1:], check_each=True)
    assert interface(model) == interface(ir.from_onnx_text(text))
    assert not any(is_cast(node) and is_cast(node.inputs[0].producer()) and rounds_back(node) for node in model.graph)


def prepared(text: str) -> ir.Model:
    """Passes may expect types and shapes."""
    model = ir.from_onnx_text(text)
    next(step for step in CHEAP if step.name == "infer-shapes")(model)
    return model


def assert_done(step: Pass, model: ir.Model) -> None:
    once = graph_digest(model)
    again = step(model)
    assert not again.modified
    assert graph_digest(model) == once


def interface(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(value.name, str(value.type), str(value.shape)) for value in values]


def is_cast(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Cast"


def rounds_back(node: ir.Node) -> bool:
    """Half → float32 → half, which changes nothing and so must not be there."""
    source = node.inputs[0].producer().inputs[0]
    return source.dtype == node.outputs[0].dtype and node.inputs[0].dtype == ir.DataType.FLOAT
