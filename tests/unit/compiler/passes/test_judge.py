"""A pass that changes the results is undone, and said to be our bug; one that only rounds is not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import parse, recurrent

from compiler.model.graph import FunctionPass, PassResult, graph_digest
from compiler.passes.convert_to_half import convert_precision
from compiler.passes.decompose_quantized import DECOMPOSE_QUANTIZED
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import make_probe, own_noise_db, run_unoptimized, tolerance_of
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES
from compiler.passes.remove_identities import REMOVE_IDENTITIES
from compiler.passes.run import run_passes

TEXT = "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { d = Mul(x, w) i = Identity(x) y = Relu(i) }"


def read(name: str):
    """A faulty pass: Relu reads another value."""

    def run(model: ir.Model) -> PassResult:
        values = {value.name: value for node in model.graph for value in node.outputs}
        model.graph[-1].replace_input_with(0, values[name])
        return PassResult(True, ("a note of its own",))

    return FunctionPass(f"read-{name}", run)


def rename_operator(op_type: str):
    def run(model: ir.Model) -> PassResult:
        model.graph[-1].op_type = op_type
        model.graph[-1].domain = "somewhere" if op_type == "Foreign" else ""
        return PassResult(True)

    return FunctionPass("rename", run)


def test_a_pass_that_changes_the_results_is_undone_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    model = parse(TEXT)
    probe = make_probe(model)
    with caplog.at_level(logging.WARNING, "fleetc.build"):
        faulty, second, third = run_passes(
            model, (read("d"), REMOVE_IDENTITIES, REMOVE_DEAD_NODES), probe=probe, undo=True, strict=True
        )
    assert "pass 1 (read-d) is left out: it changed output 'y'" in faulty.left_out
    assert not faulty.modified and faulty.notes == (faulty.left_out, "a note of its own")
    assert faulty.before == faulty.after and faulty.largest_difference > 0
    assert (second.left_out, third.left_out) == ("", "") and second.modified and third.modified
    assert [node.op_type for node in model.graph] == ["Relu"]
    np.testing.assert_array_equal(run_unoptimized(model, probe.inputs)["y"], probe.expected["y"])
    assert "bug of fleetc" in caplog.text and "report it" in caplog.text


def test_what_is_undone_leaves_the_very_same_model() -> None:
    model = parse(TEXT)
    before = graph_digest(model)
    run_passes(model, (read("d"),), probe=make_probe(model), undo=True)
    assert graph_digest(model) == before


def test_without_undo_the_difference_is_only_measured() -> None:
    model = parse(TEXT)
    (record,) = run_passes(model, (read("d"),), probe=make_probe(model))
    assert record.modified and record.left_out == "" and record.largest_difference > 0


def test_a_pass_is_compared_with_the_model_before_it_and_not_with_the_first() -> None:
    """Behind a lossy pass, a right pass is not blamed for the rounding of the other."""
    model = parse("g (float[N,3] x) => (float[N,3] y) <float[3] w = {0.1,2.3,3.7}> { d = Mul(x, w) y = Identity(d) }")
    infer_shapes(model)
    half, second = run_passes(
        model, (convert_precision("fp16"), REMOVE_IDENTITIES), probe=make_probe(model), undo=True, strict=True
    )
    assert half.modified and half.left_out == "" and half.largest_difference > 0
    assert second.left_out == ""


@pytest.mark.parametrize(("strict", "is_undone"), [(True, True), (False, False)])
def test_a_pass_after_which_the_model_does_not_run_is_undone_where_that_is_asked(strict: bool, is_undone: bool) -> None:
    model = parse(TEXT)
    model.graph.opset_imports["somewhere"] = 1
    probe = make_probe(model)
    (record,) = run_passes(model, (rename_operator("Foreign"),), probe=probe, undo=True, strict=strict)
    assert bool(record.left_out) == is_undone
    assert model.graph[-1].op_type == ("Relu" if is_undone else "Foreign")


def scaled(step: FunctionPass, pick: Callable[[ir.Model], ir.Value], factor: float) -> FunctionPass:
    """A faulty pass: the right one, and then a weight of another size."""

    def run(model: ir.Model) -> PassResult:
        step(model)
        value = pick(model)
        value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name=value.name)
        return PassResult(True)

    return FunctionPass("scaled", run)


def test_a_layer_that_quantizes_at_each_step_is_held_to_the_noise_of_the_model_itself() -> None:
    """In floats it is nearer to the model before it was quantized; that is no bug, and a wrong weight is one."""
    model = recurrent()
    probe = make_probe(model)
    assert own_noise_db(model, probe.inputs, probe.expected)["h3"] < 20
    (right,) = run_passes(model, (DECOMPOSE_QUANTIZED,), probe=probe, undo=True, strict=True)
    assert 3 <= right.sqnr_db < 20 and right.left_out == ""
    assert [node.op_type for node in model.graph] == ["LSTM", "Squeeze"] * 3
    of_last_layer = scaled(DECOMPOSE_QUANTIZED, lambda model: model.graph[-2].inputs[2], -1.0)
    (wrong,) = run_passes(recurrent(), (of_last_layer,), probe=probe, undo=True, strict=True)
    assert "'quantized' needs" in wrong.left_out
    nothing = FunctionPass("nothing", lambda model: PassResult(False))
    scale = scaled(nothing, lambda model: model.graph.initializers["ws0"], 1.05)
    (wrong,) = run_passes(recurrent(), (scale,), probe=probe, undo=True, strict=True)
    assert "'int8' needs 20 dB" in wrong.left_out  # it quantizes as before: nothing excuses it


def test_integers_must_be_equal() -> None:
    text = """g (int64[N,300] x) => (int64[N,300] y) <int64 w = {1000000}, int64 v = {1000001}>
        { d = Mul(x, w) e = Mul(x, v) y = Identity(d) }"""
    model = parse(text)
    probe = make_probe(model, {"x": np.arange(600).reshape(2, 300)})
    (record,) = run_passes(model, (read("e"),), probe=probe, undo=True)
    assert "'exact' needs inf dB" in record.left_out


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TEXT, "fp32"),
        ("g (float16[N,3] x) => (float16[N,3] y) { y = Relu(x) }", "fp16"),
        ("g (float[N,3] x) => (float[N,3] y) { h = Cast<to=16>(x) y = Cast<to=1>(h) }", "bf16"),
        (
            "g (float[N,3] x) => (float[N,3] y) <float s = {0.5}, int8 z = {0}> "
            "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
            "int8",
        ),
    ],
)
def test_the_tolerance_is_that_of_the_coarsest_arithmetic(text: str, name: str) -> None:
    model = parse(text)
    infer_shapes(model)
    assert tolerance_of(model).name == name
