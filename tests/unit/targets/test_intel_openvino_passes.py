"""What OpenVINO takes for something else, written for it: ONNX Runtime must agree before, OpenVINO after."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.infer_shapes import infer_shapes
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


OVER_CHANNELS = {
    "TopK": ("float[1,2,6,6] y, int64[1,2,6,6] z", "p = MaxPool<kernel_shape=[1,1]>(x) y, z = TopK<axis=1>(p, two)"),
    "ArgMax": ("int64[1,1,6,6] y", "p = MaxPool<kernel_shape=[1,1]>(x) y = ArgMax<axis=1>(p)"),
    "ArgMin": ("int64[1,6,6] y", "p = MaxPool<kernel_shape=[1,1]>(x) y = ArgMin<axis=-3, keepdims=0>(p)"),
    "Hardmax": ("float[1,8,6,6] y", "p = MaxPool<kernel_shape=[1,1]>(x) y = Hardmax<axis=1>(p)"),
}

IN_CHILD = """
import sys, numpy, openvino
compiled = openvino.Core().compile_model(openvino.Core().read_model(sys.argv[1]), "CPU")
found = compiled(dict(numpy.load(sys.argv[2])))
numpy.savez(sys.argv[3], **{port.any_name: found[port] for port in compiled.outputs})
"""


def infer_with_avx2(model: ir.Model, inputs: dict[str, Array], folder: Path) -> dict[str, Array]:
    """oneDNN reads the limit once in a process, so it is another one."""
    pytest.importorskip("openvino")
    ir.save(model, folder / "model.onnx")
    np.savez(folder / "in.npz", **inputs)
    files = [str(folder / name) for name in ("model.onnx", "in.npz", "out.npz")]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", IN_CHILD, *files], check=True, env=environment)
    return dict(np.load(folder / "out.npz"))


def test_places_among_channels_are_right_with_avx2(tmp_path: Path) -> None:
    """Of values in blocks of channels, as pools and convolutions give them, its kernel took other elements."""
    outputs, bodies = [], []
    for number, (heads, body) in enumerate(OVER_CHANNELS.values()):
        for name in "yzp":
            heads, body = (
                heads.replace(f"] {name}", f"] {name}{number}"),
                re.sub(rf"\b{name}\b", f"{name}{number}", body),
            )
        outputs.append(heads)
        bodies.append(body)
    model = read(f"(float[1,8,6,6] x) => ({', '.join(outputs)})", " ".join(bodies), two=np.array([2], np.int64))
    infer_shapes(model)
    inputs = {"x": normal(1, 8, 6, 6)}
    expected = run_unoptimized(model, inputs)
    assert RewriteForOpenVino()(model).modified and not RewriteForOpenVino()(model).modified
    for actual in (run_unoptimized(model, inputs), infer_with_avx2(model, inputs, tmp_path)):
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array, err_msg=name)
    assert [node.op_type for node in model.graph].count("Squeeze") == 5


@pytest.mark.parametrize("body", ["y = Softmax<axis=1>(x)", "y = Hardmax<axis=2>(x)", "y = Hardmax<axis=-1>(x)"])
def test_other_axes_and_operators_stay(body: str) -> None:
    assert not RewriteForOpenVino()(read("(float[1,8,6,6] x) => (float[1,8,6,6] y)", body)).modified


def test_a_quantized_vector_by_a_matrix_has_one_dimension() -> None:
    """OpenVINO gave [1, 3], and takes a Reshape behind the quantizers out again."""
    body = """q = QuantizeLinear(x, s, n) d = DequantizeLinear(q, s, n) e = DequantizeLinear<axis=1>(w, t)
        m = MatMul(d, e) y = Sigmoid(m)"""
    weights = {"s": np.float32(0.02), "n": np.uint8(128), "t": np.full(3, 0.01, np.float32)}
    weights["w"] = RANDOM.integers(-100, 100, (5, 3)).astype(np.int8)
    model = read("(float[5] x) => (float[3] y)", body, **{name: np.asarray(array) for name, array in weights.items()})
    infer_shapes(model)
    assert check(model, {"x": normal(5)}, tolerance="int8").count("Reshape") == 2


def test_constant_integers_are_divided_towards_zero() -> None:
    """It folded 1 / -4 to -1."""
    numbers = {"a": np.array([1, -7, 7, -8, 6]), "b": np.array([-4, 2, -2, 3, 3])}
    model = read("(int64[5] x) => (int64[5] y)", "[it] c = Div(a, b) y = Add(x, c)", **numbers)
    infer_shapes(model)
    assert check(model, {"x": np.zeros(5, np.int64)}, tolerance="exact") == ["Identity", "Add"]
