"""Quantizers that a target refuses are computed on floats: every integer and every float is what it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.model.graph import check_model
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import run_unoptimized

RNG = np.random.default_rng(3)


def read(head: str, body: str, **weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> g {head} {{ {body} }}')
    for name, array in weights.items():
        uses = [value for node in model.graph for value in node.inputs if value is not None and value.name == name]
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        model.graph.register_initializer(value)
        for old in set(uses):
            old.replace_all_uses_with(value)
    infer_shapes(model)
    return model


def is_asymmetric(node: ir.Node) -> bool:
    """What a target without zero points and uint8 refuses."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return any(value is not None and value.dtype == ir.DataType.UINT8 for value in (*node.inputs, *node.outputs)) or (
        zero is not None and (zero.const_value is None or bool(zero.const_value.numpy().any()))
    )


def check(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[str]:
    expected = run_unoptimized(model, inputs)
    assert DecomposeOperators(is_asymmetric)(model).modified
    assert not DecomposeOperators(is_asymmetric)(model).modified
    check_model(model)
    results = run_unoptimized(model, inputs)
    for name, array in expected.items():
        assert results[name].dtype == array.dtype
        np.testing.assert_allclose(results[name], array, rtol=1e-6, atol=1e-6)
    return [node.op_type for node in model.graph]


ACTIVATION = {"s": np.float32(0.05), "z": np.uint8(100)}
"""As ONNX Runtime's quantizer writes it."""


def values(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 6).astype(np.float32)  # some leave the range of the integers


def test_quantizer_and_dequantizer_are_five_operators_on_floats() -> None:
    model = read(
        "(float[3,8] x) => (float[3,8] y)", "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)", **ACTIVATION
    )
    operators = check(model, {"x": values(3, 8)})
    assert operators == ["Div", "Round", "Add", "Clip", "Sub", "Mul"]


def test_integers_that_are_moved_stay_floats() -> None:
    model = read(
        "(float[1,2,4,4] x) => (float[2,4,1,3] y)",
        "q = QuantizeLinear (x, s, z) m = MaxPool <kernel_shape = [1, 2], pads = [0, 0, 0, 0]> (q) "
        "t = Transpose <perm = [1, 2, 0, 3]> (m) y = DequantizeLinear (t, s, z)",
        **ACTIVATION,
    )
    assert "Cast" not in check(model, {"x": values(1, 2, 4, 4)})


def test_integers_that_are_taken_or_given_are_cast() -> None:
    model = read(
        "(uint8[3,8] x) => (float[3,8] y, uint8[3,8] p)",
        "y = DequantizeLinear (x, s, z) r = Relu (y) p = QuantizeLinear (r, s, z)",
        **ACTIVATION,
    )
    assert check(model, {"x": RNG.integers(0, 256, (3, 8)).astype(np.uint8)}).count("Cast") == 2


@pytest.mark.parametrize("zeros", [[3, -4, 0, 100], [7, 7, 7, 7]])
def test_weights_of_channels_with_zero_points_become_floats(zeros: list[int]) -> None:
    model = read(
        "(float[1,3,6,6] x) => (float[1,4,4,4] y)",
        "f = DequantizeLinear <axis = 0> (w, ws, wz) y = Conv (x, f)",
        w=RNG.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
        ws=np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        wz=np.array(zeros, np.int8),
    )
    assert check(model, {"x": values(1, 3, 6, 6)})[-1] == "Conv"


def test_scale_for_each_channel_of_an_activation() -> None:
    scales, zeros = np.array([0.05, 0.1, 0.2], np.float32), np.array([1, 2, 3], np.int8)
    model = read(
        "(float[2,3,4] x) => (float[2,3,4] y)",
        "q = QuantizeLinear <axis = 1> (x, s, z) y = DequantizeLinear <axis = 1> (q, s, z)",
        s=scales,
        z=zeros,
    )
    check(model, {"x": values(2, 3, 4)})


def test_computed_scale_stays_and_is_named() -> None:
    body = "a = Abs (x) s = ReduceMax <keepdims = 0> (a) q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
    model = read("(float[3] x) => (float[3] y)", body, z=np.int8(3))
    result = DecomposeOperators(is_asymmetric)(model)
    assert not result.modified and any("computed" in note for note in result.notes)


def test_symmetric_quantizers_stay() -> None:
    body = "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
    model = read("(float[3] x) => (float[3] y)", body, s=np.float32(0.1), z=np.int8(0))
    assert not DecomposeOperators(is_asymmetric)(model).modified
