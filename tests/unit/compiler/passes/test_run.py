from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pass_cases import parse, with_weight

from compiler.errors import InternalError, OutputError, UnsupportedModel
from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.instrument import measure
from compiler.passes.judge import NO_PROBE, UNCHANGED
from compiler.passes.macs import count_macs
from compiler.passes.merge_transposes import MERGE_TRANSPOSES
from compiler.passes.probe import make_probe, run_unoptimized
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES
from compiler.passes.remove_identities import REMOVE_IDENTITIES
from compiler.passes.run import run_passes

TEXT = "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { d = Mul(x, w) i = Identity(x) y = Relu(i) }"
STEPS = (REMOVE_IDENTITIES, MERGE_TRANSPOSES, REMOVE_DEAD_NODES)


def double_output(model: ir.Model) -> PassResult:
    relu = model.graph[-1]
    relu.replace_input_with(0, model.graph[0].outputs[0])
    return PassResult(True)


def raise_it(model: ir.Model) -> PassResult:
    raise KeyError("gone")


def refuse(model: ir.Model) -> PassResult:
    raise UnsupportedModel("not on this target")


def break_it(model: ir.Model) -> PassResult:
    model.graph[-1].op_type = "NoSuchOperator"
    return PassResult(True)


def test_records_count_before_and_after_and_measure_the_difference() -> None:
    model = parse(TEXT)
    one, two, three = run_passes(model, STEPS, probe=make_probe(model))
    assert [record.number for record in (one, two, three)] == [1, 2, 3]
    assert (one.before.nodes, one.after.nodes, three.after.nodes) == (3, 2, 1)
    assert (three.before.parameters, three.before.bytes, three.after.parameters) == (3, 12, 0)
    assert (one.largest_difference, one.sqnr_db, one.not_measured) == (0.0, float("inf"), "")
    assert (two.largest_difference, two.not_measured) == (None, UNCHANGED)
    assert one.to_dict()["sqnr_db"] == "inf"


def test_difference_is_against_the_model_before_the_first_pass() -> None:
    model = parse("g (float[3] x) => (float[3] y) <float two = {2.0}> { d = Mul(x, two) y = Relu(x) }")
    probe = make_probe(model)
    (first, second) = run_passes(
        model, (FunctionPass("double", double_output), FunctionPass("again", lambda _: PassResult(True))), probe=probe
    )
    expected = float(np.max(np.maximum(probe.inputs["x"], 0)))
    assert first.largest_difference == pytest.approx(expected)
    assert second.largest_difference == pytest.approx(expected)


def test_without_a_probe_the_record_says_so() -> None:
    (record,) = run_passes(parse(TEXT), (REMOVE_IDENTITIES,))
    assert record.not_measured == NO_PROBE


@pytest.mark.parametrize(("stop", "first", "names"), [(0, 1, 0), (2, 1, 2), (9, 1, 3), (11, 10, 2), (3, 10, 0)])
def test_stop_after_counts_through_the_build(stop: int, first: int, names: int) -> None:
    records = run_passes(parse(TEXT), STEPS, stop_after=stop, first=first)
    assert [record.number for record in records] == list(range(first, first + names))


def test_dump_holds_the_model_before_and_after_each_change(tmp_path: Path) -> None:
    run_passes(parse(TEXT), STEPS, dump_dir=tmp_path / "d")
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    stems = ["00-input", "01-remove-identities", "03-remove-dead-nodes"]
    assert names == [f"{stem}.{kind}" for stem in stems for kind in ("onnx", "txt")]
    assert len(onnx.load(tmp_path / "d" / "03-remove-dead-nodes.onnx").graph.node) == 1


def test_dump_into_a_file_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="f"):
        run_passes(parse(TEXT), STEPS, dump_dir=tmp_path / "f")


def test_pass_that_raises_is_named_with_the_way_around_it() -> None:
    steps = (REMOVE_IDENTITIES, FunctionPass("broken", raise_it))
    with pytest.raises(InternalError, match=r"pass 2 \(broken\) failed: KeyError") as caught:
        run_passes(parse(TEXT), steps)
    assert "--stop-after 1" in caught.value.remedy


def test_refusal_of_a_targets_pass_is_no_bug_of_ours() -> None:
    with pytest.raises(UnsupportedModel, match="not on this target"):
        run_passes(parse(TEXT), (FunctionPass("picky", refuse),))


@pytest.mark.parametrize("check_each", [True, False])
def test_invalid_model_is_found_and_the_pass_named(check_each: bool) -> None:
    steps = (FunctionPass("broken", break_it), MERGE_TRANSPOSES)
    with pytest.raises(InternalError, match=r"after pass 1 \(broken\)"):
        run_passes(parse(TEXT), steps, check_each=check_each)


@pytest.mark.parametrize(
    ("body", "macs"),
    [
        ("float[2,3,3,3] w => y = Conv<pads=[1,1,1,1]>(x, w)", 2 * 8 * 8 * 27),
        ("float[3,1,3,3] w => y = Conv<group=3, pads=[1,1,1,1]>(x, w)", 3 * 64 * 9),
        ("float[3,2,2,2] w => y = ConvTranspose(x, w)", 3 * 64 * 8),
        ("float[8,5] w => y = MatMul(x, w)", 3 * 8 * 5 * 8),
    ],
)
def test_multiply_accumulates_count_a_symbolic_batch_as_one(body: str, macs: int) -> None:
    weight, node = body.split(" => ")
    model = parse(
        f"g (float[N,3,8,8] x, {weight}) => (float[A,B,C,D] y) {{ {node.replace('y =', 'z =')} y = Relu(z) }}"
    )
    assert measure(model).macs == macs


def test_multiply_accumulates_are_not_known_without_shapes() -> None:
    assert count_macs(parse("g (float[2,3] x) => (float[A,B] y) { a = Relu(x) z = MatMul(x, a) y = Relu(z) }")) is None


@pytest.mark.parametrize(("text", "macs"), [("Gemm(x, w)", 10 * 4), ("Gemm<transA=1>(x, v)", 4 * 5 * 10)])
def test_multiply_accumulates_of_gemm(text: str, macs: int) -> None:
    model = parse(f"g (float[10,4] x, float[4,1] w, float[10,5] v) => (float[A,B] y) {{ z = {text} y = Relu(z) }}")
    assert measure(model).macs == macs


def test_probe_of_a_model_that_draws_says_why_there_is_none() -> None:
    probe = make_probe(parse("g (float[2] x) => (float[2] y) { r = RandomNormalLike(x) y = Add(x, r) }"))
    assert probe.expected is None
    assert probe.why == "the model draws random numbers"


def test_probe_of_a_model_that_does_not_run_says_why() -> None:
    probe = make_probe(parse("g (float[2] x, float[3] z) => (float[2] y) { y = Add(x, z) }"))
    assert probe.expected is None
    assert "ONNX Runtime does not run the model" in probe.why


def test_probe_finds_a_size_for_symbolic_images() -> None:
    model = parse("g (float[N,1,H,W] x) => (float[N,1,A,B] y) { y = MaxPool<kernel_shape=[5,5]>(x) }")
    probe = make_probe(model)
    assert probe.inputs["x"].shape == (2, 1, 8, 8)


def test_large_weights_are_lent_to_the_run() -> None:
    model = parse("g (float[N,2000] x, float[2000,4] w) => (float[N,4] y) { y = MatMul(x, w) }")
    with_weight(model, "w", np.ones((2000, 4), np.float32))
    outputs = run_unoptimized(model, {"x": np.ones((3, 2000), np.float32)})
    np.testing.assert_array_equal(outputs["y"], np.full((3, 4), 2000.0, np.float32))


HALVED = """
g (float[1,SIZE] x) => (float[A,B] y)
<float[3,2] w = {1, 2, 3, 4, 5, 6}, float half = {0.5}, int64[1] two = {2}, int64[1] one = {1}> {
  sizes = Shape (x) size = Slice (sizes, one, two) f = Cast <to = 1> (size) h = Mul (f, half) i = Cast <to = 7> (h)
  target = Concat <axis = 0> (i, two) r = Reshape (x, target) y = Add (r, w)
}"""
"""Valid where SIZE is 6: what is added has 3 rows. Inference does not follow sizes through floats, and folding does."""


def test_sizes_that_the_model_does_not_take_are_no_fault_of_a_pass() -> None:
    model = parse(HALVED.replace("SIZE", "8"))
    probe = make_probe(model, {"x": np.zeros((1, 8), np.float32)})
    with pytest.raises(UnsupportedModel, match=r"cannot be run with these sizes.*Add"):
        run_passes(model, (FOLD_CONSTANTS, INFER_SHAPES), probe=probe)
    model = parse(HALVED.replace("SIZE", "6"))
    probe = make_probe(model, {"x": np.zeros((1, 6), np.float32)})
    assert not any(record.left_out for record in run_passes(model, (FOLD_CONSTANTS, INFER_SHAPES), probe=probe))
