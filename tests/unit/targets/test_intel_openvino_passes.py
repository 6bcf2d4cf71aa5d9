"""What OpenVINO takes for something else, written for it: ONNX Runtime must agree before, OpenVINO after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.probe import run_unoptimized
from compiler.target import Array
from targets.intel_openvino.passes import RewriteForOpenVino

RANDOM = np.random.default_rng(7)


def read(head: str, body: str, **weights: Array) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> g {head} {{ {body} }}')
    for name, array in weights.items():
        value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


def infer(model: ir.Model, inputs: dict[str, Array]) -> dict[str, Array]:
    ov = pytest.importorskip("openvino")
    network = ov.Core().read_model(ir.to_proto(model).SerializeToString())
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([inputs[port.get_any_name()] for port in compiled.inputs])
    return {str(value.name): found[str(value.name)] for value in model.graph.outputs}


def check(model: ir.Model, inputs: dict[str, Array], *, tolerance: str = "fp32") -> list[str]:
    """Runs the pass; returns the operators afterwards."""
    expected = run_unoptimized(model, inputs)
    assert RewriteForOpenVino()(model).modified
    assert not RewriteForOpenVino()(model).modified
    for found in (run_unoptimized(model, inputs), infer(model, inputs)):
        for name, stats in compare_all(expected, found).items():
            assert TOLERANCES[tolerance].accepts(stats), (name, str(stats))
    assert all(value.dtype and value.shape is not None for node in model.graph for value in node.outputs if value.name)
    return [node.op_type for node in model.graph]


@pytest.mark.needs_openvino
@pytest.mark.parametrize(
    ("call", "operators"),
    [
        ("Selu<alpha: float = 0.0>(x)", ["Relu", "Mul"]),
        ("HardSigmoid<alpha: float = 0.0>(x)", ["Mul", "Add", "Max", "Min"]),
        ("HardSigmoid<beta: float = 0.0>(x)", ["Mul", "Add", "Max", "Min"]),
    ],
)
def test_an_attribute_that_is_zero_is_not_the_default(call: str, operators: list[str]) -> None:
    model = read("(float[4,6] x) => (float[4,6] y)", f"y = {call}")
    assert check(model, {"x": normal(4, 6)}) == operators


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def test_slope_of_the_last_axis_is_spread_out() -> None:
    model = read("(float[1,4,4,4] x) => (float[1,4,4,4] y)", "y = PRelu (x, s)", s=normal(4))
    assert check(model, {"x": normal(1, 4, 4, 4)}) == ["Reshape", "PRelu"]


def test_other_slopes_stay() -> None:
    for sizes in ((1,), (4, 1, 1), (1, 1, 4, 1)):
        model = read("(float[1,4,4,4] x) => (float[1,4,4,4] y)", "y = PRelu (x, s)", s=normal(*sizes))
        assert not RewriteForOpenVino()(model).modified


@pytest.mark.parametrize("pads", ["1, 1, 1, 1", "0, 1, 1, 0"])
def test_pads_that_are_counted_become_a_pad(pads: str) -> None:
    body = (
        f"y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [{pads}], ceil_mode = 1, "
        "count_include_pad = 1> (x)"
    )
    model = read("(float[1,3,7,8] x) => (float[1,3,?,?] y)".replace("?", "n"), body)
    model.graph.outputs[0].shape = run_shape(model, (1, 3, 7, 8))
    assert check(model, {"x": normal(1, 3, 7, 8) + 5}) == ["Pad", "AveragePool"]


def run_shape(model: ir.Model, sizes: tuple[int, ...]) -> ir.Shape:
    return ir.Shape(run_unoptimized(model, {"x": normal(*sizes)})["y"].shape)


def test_average_pool_without_pads_or_ceil_mode_stays() -> None:
    for more in ("ceil_mode = 1, count_include_pad = 1", "count_include_pad = 1, pads = [1, 1, 1, 1]"):
        body = f"y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], {more}> (x)"
        assert not RewriteForOpenVino()(read("(float[1,3,8,8] x) => (float[1,3,n,m] y)", body)).modified


@pytest.mark.parametrize(("operator", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
def test_recurrent_operators_on_one_input_read_copies(operator: str, gates: int) -> None:
    """With a batch above 1 the first of two gave results of a transposed sequence."""
    body = f"y = {operator} <hidden_size = 4> (x, w, r) z = {operator} <hidden_size = 4> (x, v, q)"
    weights = {"w": normal(1, gates * 4, 6), "r": normal(1, gates * 4, 4)}
    weights |= {"v": normal(1, gates * 4, 6), "q": normal(1, gates * 4, 4)}
    model = read("(float[5,3,6] x) => (float[5,1,3,4] y, float[5,1,3,4] z)", body, **weights)
    assert check(model, {"x": normal(5, 3, 6)}) == ["Concat", "Split", operator, operator]


def test_recurrent_operators_of_a_batch_of_one_stay() -> None:
    body = "y = GRU <hidden_size = 4> (x, w, r) z = GRU <hidden_size = 4> (x, v, r)"
    weights = {"w": normal(1, 12, 6), "r": normal(1, 12, 4), "v": normal(1, 12, 6)}
    model = read("(float[5,1,6] x) => (float[5,1,1,4] y, float[5,1,1,4] z)", body, **weights)
    assert not RewriteForOpenVino()(model).modified


@pytest.mark.parametrize(
    ("body", "sizes", "weights"),
    [
        ("m = Mul (x, k) y = Conv (m, w)", (1, 6, 1, 1), (4, 6, 3, 3)),
        ("m = Mul (k, x) y = Conv (m, w)", (6, 1, 1), (4, 6, 3, 3)),
        ("m = Div (x, k) y = Conv <group = 3> (m, w)", (1, 6, 1, 1), (3, 2, 3, 3)),
        ("m = Mul (x, k) y = ConvTranspose (m, w)", (1, 6, 1, 1), (6, 4, 3, 3)),
    ],
)
def test_one_channel_spread_over_many_before_a_convolution(body: str, sizes, weights) -> None:
    """OpenVINO itself fails: "Data batch channel count (1) does not match filter input channel count"."""
    model = read("(float[2,1,8,8] x) => (float[N,M,H,W] y)", body, k=normal(*sizes), w=normal(*weights))
    for value in (model.graph[0].outputs[0],):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 6, 8, 8])
    assert check(model, {"x": normal(2, 1, 8, 8)})[0] == "Conv"


@pytest.mark.parametrize(
    ("shape", "sizes", "weights"),
    [((1, 6, 8, 8), (1, 6, 1, 1), (4, 6, 3, 3)), ((1, 1, 8, 8), (1, 1, 1, 8), (4, 1, 3, 3))],
)
def test_a_product_that_adds_no_channels_stays(shape, sizes, weights) -> None:
    model = read(
        f"(float[{','.join(map(str, shape))}] x) => (float[N,M,H,W] y)",
        "m = Mul (x, k) y = Conv (m, w)",
        k=normal(*sizes),
        w=normal(*weights),
    )
    assert not RewriteForOpenVino()(model).modified
