from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import apply, assert_same, parse

from compiler.errors import InternalError, UnsupportedModel
from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, compare
from compiler.passes.convert_to_half import convert_precision, refuse_undefined
from compiler.passes.infer_shapes import INFER_SHAPES, infer_shapes
from compiler.passes.pipelines import precision_passes
from compiler.passes.probe import run_unoptimized
from compiler.passes.run import run_passes

FP16, BF16 = convert_precision("fp16"), convert_precision("bf16")
CONV = """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float[2,2,1,1] w = {1,2,3,4}, float[2] b = {0.5,0.25}>
    { c = Conv(x, w, b) y = Relu(c) }"""


def test_interface_stays_float32_and_the_inside_is_half() -> None:
    model, result = apply(FP16, CONV, tolerance="fp16")
    assert result.modified
    assert [node.op_type for node in model.graph] == ["Cast", "Conv", "Relu", "Cast"]
    assert [value.name for value in model.graph[1].inputs] == ["x_half", "w_half", "b_half"]
    assert {value.const_value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert model.graph.initializers["b_half"].const_value.numpy().tolist() == [0.5, 0.25]
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("y", ir.DataType.FLOAT)]


def test_bfloat16_is_valid_and_its_weights_are_rounded_to_eight_bits() -> None:
    model = parse(f'<ir_version: 10, opset_import: ["": 22]>{CONV.replace("{1,2,3,4}", "{1,2,3,257}")}')
    infer_shapes(model)
    BF16(model)
    check_model(model)
    weight = model.graph.initializers["w_half"].const_value
    assert weight.dtype == ir.DataType.BFLOAT16
    assert weight.numpy().astype(np.float32).ravel().tolist() == [1, 2, 3, 256]


def test_operator_that_the_opset_does_not_define_for_the_type_stays_float32_with_the_reason() -> None:
    model = parse(CONV)
    infer_shapes(model)
    (note,) = BF16(model).notes
    assert note == "Conv:c: Conv stays float32: opset 20 does not define it for bf16"


def test_operator_of_the_table_stays_float32_between_two_casts_with_the_reason() -> None:
    model, result = apply(
        FP16, "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) [s] b = Softmax(a) y = Relu(b) }", tolerance="fp16"
    )
    assert [node.op_type for node in model.graph] == ["Cast", "Relu", "Cast", "Softmax", "Cast", "Relu", "Cast"]
    assert result.notes[0].startswith("s: Softmax stays float32: an exponential")


def test_shared_constant_stays_float32_for_the_reader_that_does() -> None:
    model, _ = apply(
        FP16,
        "g (float[N,2] x) => (float[N,2] y) <float[2] c = {2,2}> { a = Mul(x, c) b = Pow(a, c) y = Abs(b) }",
        tolerance="fp16",
    )
    held = {name: value.const_value.dtype for name, value in model.graph.initializers.items()}
    assert held == {"c": ir.DataType.FLOAT, "c_half": ir.DataType.FLOAT16}


def test_one_cast_serves_every_reader() -> None:
    model, _ = apply(
        FP16, "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Tanh(x) y = Add(a, b) }", tolerance="fp16"
    )
    assert [node.op_type for node in model.graph].count("Cast") == 2


@pytest.mark.parametrize(("number", "reason"), [("100000.0", "beyond 65504"), ("0.000000000001", "would become 0")])
def test_constant_that_half_cannot_hold_keeps_its_node_float32(number: str, reason: str) -> None:
    model, result = apply(
        FP16,
        f"g (float[N,2] x) => (float[N,2] y) <float c = {{{number}}}> {{ [m] a = Add(x, c) y = Relu(a) }}",
        tolerance="fp16",
    )
    (note,) = result.notes
    assert note.startswith("m: Add stays float32: its constant 'c'") and reason in note
    assert model.graph.initializers["c"].const_value.dtype == ir.DataType.FLOAT


def test_bfloat16_holds_what_float16_does_not() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) <float c = {100000.0}> { a = Add(x, c) y = Relu(a) }")
    infer_shapes(model)
    assert BF16(model).notes == ()


def test_infinite_mask_is_kept() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) <float[2] c = {0,0}> { a = Add(x, c) y = Relu(a) }")
    model.graph.initializers["c"].const_value = ir.tensor(np.array([0, -np.inf], np.float32))
    infer_shapes(model)
    assert FP16(model).notes == ()
    assert np.isneginf(model.graph.initializers["c_half"].const_value.numpy()[1])


def test_scales_of_resize_stay_float32_by_schema() -> None:
    model, _ = apply(
        FP16,
        "g (float[N,1,2,2] x) => (float[N,1,4,4] y) <float[4] s = {1,1,2,2}> { r = Resize(x, , s) y = Relu(r) }",
        tolerance="fp16",
    )
    assert model.graph.initializers["s"].const_value.dtype == ir.DataType.FLOAT


def test_branch_stays_float32_and_reads_a_widened_value() -> None:
    model, result = apply(
        FP16,
        """g (float[3] x, bool c) => (float[3] y) { a = Relu(x)
        [i] b = If(c) <then_branch = t () => (float[3] p) { p = Neg(a) },
                   else_branch = e () => (float[3] q) { q = Abs(x) }> y = Relu(b) }""",
        tolerance="fp16",
    )
    assert "i: If stays float32: it holds a subgraph" in result.notes
    branch = model.graph[3].attributes["then_branch"].as_graph() if model.graph[3].op_type == "If" else None
    reads = branch[0].inputs[0] if branch is not None else None
    assert reads is not None and reads.dtype == ir.DataType.FLOAT


def test_value_that_is_output_and_read_inside_keeps_its_name_outside() -> None:
    model, _ = apply(FP16, "g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x) y = Neg(a) }", tolerance="fp16")
    assert [value.name for value in model.graph.outputs] == ["a", "y"]
    assert all(value.dtype == ir.DataType.FLOAT for value in model.graph.outputs)


def test_shape_of_a_value_needs_no_cast() -> None:
    model, _ = apply(
        FP16, "g (float[N,2] x) => (int64[2] s, float[N,2] y) { a = Relu(x) s = Shape(a) y = Neg(a) }", tolerance="fp16"
    )
    assert [node.op_type for node in model.graph].count("Cast") == 2


def test_unknown_precision_is_our_bug() -> None:
    with pytest.raises(InternalError, match="fp8"):
        convert_precision("fp8")
    with pytest.raises(InternalError, match="int8"):
        precision_passes("int8")


def test_cast_of_the_models_own_does_not_stand_beside_ours() -> None:
    model = parse("g (float16[N,2] x) => (float[N,2] y) { f = Cast<to=1>(x) a = Relu(f) y = Neg(a) }")
    run_passes(model, (INFER_SHAPES, *precision_passes("fp16")), check_each=True)
    assert_same(model, "g (float16[N,2] x) => (float[N,2] y) { a = Relu(x) y_half = Neg(a) y = Cast<to=1>(y_half) }")


def test_a_convolution_of_an_opset_without_bf16_is_refused_with_the_way_out() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 18]>
        g (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2}> { y = Conv(x, w) }"""
    )
    with pytest.raises(UnsupportedModel, match=r"opset 18.*does not define Conv for bf16.*\n.*opset 22"):
        refuse_undefined(model, "bf16")
    refuse_undefined(model, "fp16")


LOWEST = "-3.4028234663852886e38"
MASKS = {
    "a product": "inv = Sub(one, keep) m = Mul(inv, low) s = Add(scores, m)",
    "a product, reshaped": "inv = Sub(one, keep) m = Mul(inv, low) u = Unsqueeze(m, ax) t = Squeeze(u, ax) "
    "s = Add(scores, t)",
    "a choice": "k = Greater(keep, half) m = Where(k, zero, low) s = Add(scores, m)",
    "a choice of scores": "k = Greater(keep, half) s = Where(k, scores, low)",
    "subtracted": "inv = Sub(one, keep) n = Mul(inv, high) s = Sub(scores, n)",
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lowest", [LOWEST, "-1e9", "-100000.0", "-10000.0"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_row_that_is_masked_as_a_whole_stays_finite(mask: str, lowest: str, precision: str) -> None:
    """In half the lowest float32 is −∞, and Softmax of nothing else is NaN."""
    weights = ",".join(str((i * 7) % 5 / 4) for i in range(36))
    text = f"""<ir_version: 10, opset_import: ["": 22]> g (float[2,6] x, float[6] keep) => (float[2,6] y)
        <float one = {{1}}, float half = {{0.5}}, float zero = {{0}}, float low = {{{lowest}}},
         float high = {{{lowest[1:]}}}, int64[1] ax = {{0}}, float[6,6] w = {{{weights}}}>
        {{ scores = MatMul(x, w) {MASKS[mask]} p = Softmax<axis=-1>(s) y = MatMul(p, w) }}"""
    model = parse(text)
    infer_shapes(model)
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    for keep in (np.zeros(6), np.ones(6), np.array([0, 1, 1, 0, 0, 1])):
        half = parse(text)
        infer_shapes(half)
        assert convert_precision(precision)(half).modified
        check_model(half)
        if precision == "bf16":
            continue  # ONNX Runtime has no kernels for it
        feeds = {"x": x, "keep": keep.astype(np.float32)}
        expected, actual = run_unoptimized(model, feeds)["y"], run_unoptimized(half, feeds)["y"]
        assert np.isfinite(actual).all()
        assert TOLERANCES["fp16"].accepts(compare(expected, actual))
    assert {node.op_type: node.outputs[0].dtype for node in half.graph}["Softmax"] == ir.DataType.FLOAT


def test_a_mask_that_the_caller_makes_stays_float32() -> None:
    text = """g (float[2,6] x, float[2,6] mask) => (float[2,6] y) <float[6,6] w = {%s}>
        { scores = MatMul(x, w) s = Add(scores, mask) p = Softmax<axis=-1>(s) y = MatMul(p, w) }"""
    text %= ",".join(str((i * 7) % 5 / 4) for i in range(36))
    model, half = parse(text), parse(text)
    for one in (model, half):
        infer_shapes(one)
    notes = FP16(half).notes
    assert any("'mask' may go beyond 65504" in note for note in notes)
    low = np.finfo(np.float32).min
    mask = np.array([[low] * 6, [0, low, 0, 0, low, 0]], np.float32)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32), "mask": mask}
    expected, actual = run_unoptimized(model, feeds)["y"], run_unoptimized(half, feeds)["y"]
    assert TOLERANCES["fp16"].accepts(compare(expected, actual))


def test_a_picture_is_no_mask() -> None:
    """Inputs that a product stands behind are converted as before."""
    model, _ = apply(
        FP16,
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float c = {2}>
        { a = Mul(x, c) b = MatMul(a, w) y = Softmax(b) }""",
        tolerance="fp16",
    )
    assert [node.op_type for node in model.graph] == ["Cast", "Mul", "MatMul", "Cast", "Softmax"]


def test_an_angle_of_a_position_stays_float32_and_its_sine_does_not() -> None:
    """In float16 position 1501 is 1501, times 0.7 it is 1051 instead of 1050.7."""
    text = """g (int64[N,1] places, float[N,4] x) => (float[N,4] y) <float[4] rates = {1.0, 0.7, 0.3, 0.01}>
        { p = Cast<to=1>(places) angle = Mul(p, rates) c = Cos(angle) s = Sin(angle)
          a = Mul(x, c) b = Mul(x, s) y = Add(a, b) }"""
    model, half = parse(text), parse(text)
    for one in (model, half):
        infer_shapes(one)
    notes = FP16(half).notes
    assert [note.split(": ")[1].split()[0] for note in notes] == ["Mul", "Cos", "Sin"]
    types = {node.op_type: node.outputs[0].dtype for node in half.graph}
    assert types["Cos"] == types["Sin"] == ir.DataType.FLOAT and types["Add"] == ir.DataType.FLOAT16
    places = np.array([[0], [7], [1501], [2999]])
    feeds = {"places": places, "x": np.ones((4, 4), np.float32)}
    expected, actual = run_unoptimized(model, feeds)["y"], run_unoptimized(half, feeds)["y"]
    assert TOLERANCES["fp16"].accepts(compare(expected, actual))
