from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import apply, assert_same, parse

from compiler.errors import InternalError, UnsupportedModel
from compiler.model.graph import check_model
from compiler.passes.convert_to_half import convert_precision, refuse_undefined
from compiler.passes.infer_shapes import INFER_SHAPES, infer_shapes
from compiler.passes.pipelines import precision_passes
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
