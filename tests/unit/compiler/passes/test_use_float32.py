"""Operators on float64 are computed in float32 for a target without it, where that loses nothing but rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import run_unoptimized
from compiler.passes.use_float32 import UseFloat32


def refuses(node: ir.Node) -> bool:
    """A target that casts to float64, and does nothing else with it."""
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    return ir.DataType.DOUBLE in types and node.op_type != "Cast"


def read(head: str, body: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 17]> g {head} {{ {body} }}')
    infer_shapes(model)
    return model


def doubles_in(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if refuses(node)]


def test_the_end_of_a_model_is_computed_in_float32_and_its_output_stays_float64() -> None:
    model = read(
        "(float[2,4] x) => (double[2,4] y, float[2,4] z) <double[4] w = {1, 2, 3, 4.5}>",
        "d = Cast <to = 11> (x) m = Mul (d, w) c = Constant <value = double {0.25}> () y = Add (m, c) "
        "z = Cast <to = 1> (y)",
    )
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    expected = run_unoptimized(model, inputs)
    result = UseFloat32(refuses)(model)
    assert result.modified and "computed in float32" in result.notes[0]
    assert not doubles_in(model)
    check_model(model)
    outputs = run_unoptimized(model, inputs)
    assert {name: array.dtype for name, array in outputs.items()} == {"y": np.float64, "z": np.float32}
    for name, stats in compare_all(expected, outputs).items():
        assert TOLERANCES["fp32"].accepts(stats), name
    assert not UseFloat32(refuses)(model).modified


def test_a_double_in_the_middle_ends_in_float() -> None:
    head = "(float[8] x) => (float[1] y)"
    model = read(head, "d = Cast <to = 11> (x) m = ReduceMean <axes = [0]> (d) y = Cast <to = 1> (m)")
    inputs = {"x": np.arange(8, dtype=np.float32)}
    assert UseFloat32(refuses)(model).modified and not doubles_in(model)
    assert run_unoptimized(model, inputs)["y"] == [3.5]


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        ("(double[3] x) => (double[3] y)", "y = Relu (x)", "input 'x' is float64"),
        ("(int64[3] x) => (double[3] y)", "d = Cast <to = 11> (x) y = Mul (d, d)", "casts INT64"),
        (
            "(float[3] x) => (double[3] y)",
            "d = Cast <to = 11> (x) c = Constant <value = double {1e300}> () y = Min (d, c)",
            "is beyond float32",
        ),
    ],
)
def test_what_float32_cannot_say_stays(head: str, body: str, reason: str) -> None:
    model = read(head, body)
    result = UseFloat32(refuses)(model)
    assert not result.modified and reason in result.notes[0]


def test_a_target_with_float64_is_left_alone() -> None:
    model = read("(float[3] x) => (double[3] y)", "d = Cast <to = 11> (x) y = Mul (d, d)")
    assert not UseFloat32(lambda node: False)(model).modified


def refuses_halves(node: ir.Node) -> bool:
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    return ir.DataType.FLOAT16 in types and node.op_type != "Cast"


def test_a_float16_model_is_computed_in_float32_and_keeps_its_interface() -> None:
    model = read(
        "(float16[2,4] x, float[2,4] k, float16[4,3] w) => (float16[2,3] y, float[2,3] z, float16[2,4] x2)",
        "h = Cast <to = 10> (k) s = Add (x, h) m = MatMul (s, w) y = Relu (m) z = Cast <to = 1> (m) x2 = Neg (x)",
    )
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(np.arange(12, dtype=np.float16).reshape(4, 3), name="w")
    model.graph.register_initializer(weight)
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((2, 4)).astype(np.float16), "k": rng.standard_normal((2, 4)).astype(np.float32)}
    expected = run_unoptimized(model, inputs)
    assert UseFloat32(refuses_halves)(model).modified
    assert not any(refuses_halves(node) for node in model.graph)
    check_model(model)
    outputs = run_unoptimized(model, inputs)
    assert {name: array.dtype for name, array in outputs.items()} == {
        name: array.dtype for name, array in expected.items()
    }
    for name, stats in compare_all(expected, outputs).items():
        assert TOLERANCES["fp16"].accepts(stats), name
    assert not UseFloat32(refuses_halves)(model).modified
