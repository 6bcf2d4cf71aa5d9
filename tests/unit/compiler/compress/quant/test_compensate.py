"""Compensated rounding: the layout of layers as matrices, and the least error of what a layer computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from quant_models import batches_of, model_of, scheme_of

from compiler.compress.quant import QuantOptions, quantize
from compiler.compress.quant.compensate import (
    DAMPING,
    compensate,
    factor_in_place,
    factor_of,
    factorize,
    round_again,
    round_in_turn,
)
from compiler.compress.quant.plan import TensorQuant
from compiler.compress.quant.unfold import Layout, find_layout
from compiler.compress.quant.weights import dequantize, nearest, quantize_weight, round_weight, spread
from compiler.model.numerics import Array
from compiler.model.reference import Unoptimized
from compiler.target.scheme import TensorFormat

INT4 = TensorFormat("int4", granularity="channel")
LAYERS = {
    "Conv": "(float[N, 4, 6, 6] x, float[6, 4, 3, 2] c_w) => (float[N, 6, a, b] y) { y = Conv(x, c_w) }",
    "strided": "(float[N, 4, 9, 9] x, float[6, 4, 3, 3] c_w) => (float[N, 6, a, b] y) "
    "{ y = Conv<pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>(x, c_w) }",
    "depthwise": "(float[N, 6, 5, 5] x, float[6, 1, 3, 3] c_w) => (float[N, 6, a, b] y) "
    "{ y = Conv<group = 6>(x, c_w) }",
    "grouped": "(float[N, 6, 5] x, float[4, 3, 2] c_w) => (float[N, 4, a] y) { y = Conv<group = 2>(x, c_w) }",
    "Gemm": "(float[N, 6] x, float[6, 5] c_w) => (float[N, 5] y) { y = Gemm(x, c_w) }",
    "transposed": "(float[N, 6] x, float[5, 6] c_w) => (float[N, 5] y) { y = Gemm<transB = 1>(x, c_w) }",
    "MatMul": "(float[N, 3, 6] x, float[6, 5] c_w) => (float[N, 3, 5] y) { y = MatMul(x, c_w) }",
}


def layer(name: str) -> tuple[ir.Model, ir.Node, NDArray[np.float32], Layout]:
    model = model_of(LAYERS[name])
    node = model.graph[0]
    weight = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
    layout = find_layout(node, weight.shape)
    assert isinstance(layout, Layout), layout
    return model, node, weight, layout


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_as_matrices_computes_what_the_layer_does(name: str) -> None:
    model, _, weight, layout = layer(name)
    (inputs,) = batches_of(model, count=1, size=2)
    want = Unoptimized(model).run(inputs)["y"]
    matrix, rows = layout.matrix(weight), layout.rows(inputs["x"])
    assert matrix.shape[2] == rows.shape[2] == layout.terms
    assert np.array_equal(layout.weight(matrix), weight)
    found = np.einsum("got,grt->rgo", matrix, rows).reshape(len(rows[0]), -1)  # (rows, outputs)
    channels = want if name in ("Gemm", "transposed", "MatMul") else np.moveaxis(want, 1, -1)
    assert np.allclose(found, channels.reshape(found.shape), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_compensated_weights_lie_on_the_lattice_and_compute_nearer_to_the_float_layer(name: str) -> None:
    model, node, weight, layout = layer(name)
    quant = quantize_weight(weight, node, INT4)
    mixing = np.random.default_rng(5).normal(size=(8, 8)).astype(np.float32)
    inputs = [correlated(batch["x"], mixing) for batch in batches_of(model, count=3)]
    found = compensate(weight, quant, layout, factorize(layout, inputs))
    nearest = dequantize(round_weight(weight, quant), quant)
    assert np.allclose(dequantize(round_weight(found, quant), quant), found, atol=1e-6)
    assert error(layout, weight, found, inputs) < 0.8 * error(layout, weight, nearest, inputs)


def test_an_input_that_is_always_zero_leaves_weights_rounded_to_nearest() -> None:
    model, node, weight, layout = layer("Gemm")
    quant = quantize_weight(weight, node, INT4)
    zeros = [np.zeros_like(batch["x"]) for batch in batches_of(model)]
    assert np.allclose(
        compensate(weight, quant, layout, factorize(layout, zeros)), dequantize(round_weight(weight, quant), quant)
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "(float[N, 4, 6] x, float[6, 4, 3] c_w) => (float[N, 6, a] y) "
            '{ y = Conv<auto_pad = "SAME_UPPER">(x, c_w) }',
            "padding",
        ),
        ("(float[6, 3] x, float[6, 5] c_w) => (float[3, 5] y) { y = Gemm<transA = 1>(x, c_w) }", "transposed"),
        ("(float[2, 3, 6] x, float[2, 6, 5] c_w) => (float[2, 3, 5] y) { y = MatMul(x, c_w) }", "3 dimensions"),
    ],
)
def test_a_layer_that_is_no_plain_product_of_matrices_says_why(body: str, why: str) -> None:
    node = model_of(body).graph[0]
    found = find_layout(node, tuple(node.inputs[1].shape.numpy()))  # type: ignore[union-attr]
    assert isinstance(found, str) and why in found


def test_a_model_quantized_with_compensation_errs_less_on_other_data() -> None:
    body = (
        "(float[N, 4, 8, 8] x, float[8, 4, 3, 3] c_w, float[8, 8, 3, 3] c_v, float[288, 5] c_u) => (float[N, 5] y) "
        "{ a = Conv<pads = [1, 1, 1, 1]>(x, c_w) r = Relu(a) b = Conv(r, c_v) f = Flatten(b) y = MatMul(f, c_u) }"
    )
    model = model_of(body)
    scheme = scheme_of(weight=TensorFormat("int4", granularity="channel"))
    batches, others = (
        [{"x": np.cumsum(one["x"], axis=2, dtype=np.float32)} for one in batches_of(model, count=8, seed=seed)]
        for seed in (3, 99)
    )
    plain = quantize(model, batches, scheme, QuantOptions(fit_samples=64, compensate=False))
    better = quantize(model, batches, scheme, QuantOptions(fit_samples=64, compensate=True))
    assert squared(better.model, model, others) < 0.8 * squared(plain.model, model, others)


def correlated(array: Array, mixing: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inputs that depend on each other, as those of real layers do: else rounding has nothing to make up with."""
    axis = 1 if array.ndim > 2 and array.shape[1] != 3 else array.ndim - 1
    mixed = np.moveaxis(np.moveaxis(array, axis, -1) @ mixing[: array.shape[axis], : array.shape[axis]], -1, axis)
    found: NDArray[np.float32] = np.cumsum(mixed, axis=-1, dtype=np.float32)
    return found


def error(layout: Layout, weight: Array, found: Array, inputs: list[NDArray[np.float32]]) -> float:
    missing = layout.matrix(weight - found)
    return sum(float(np.square(missing @ np.swapaxes(layout.rows(one), 1, 2)).sum()) for one in inputs)


def squared(found: ir.Model, model: ir.Model, batches: list[dict[str, Array]]) -> float:
    pairs = [(Unoptimized(model).run(one)["y"], Unoptimized(found).run(one)["y"]) for one in batches]
    return sum(float(np.square(want - got).sum()) for want, got in pairs)


FORMATS = {
    "narrow": TensorFormat("int8", granularity="channel", narrow=True),
    "shifted": TensorFormat("uint8", granularity="channel"),
    "float8": TensorFormat("float8e4m3fn", granularity="channel"),
    "blocks": TensorFormat("int4", granularity="block", block_size=3),
    "one scale": TensorFormat("int8"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_again_to_the_nearest_changes_nothing_in_any_format(name: str) -> None:
    model, node, weight, layout = layer("MatMul")
    quant = quantize_weight(weight, node, FORMATS[name])
    inputs = [batch["x"] for batch in batches_of(model)]
    found = compensate(weight, quant, layout, factorize(layout, inputs))
    integers = round_weight(found, quant)
    assert np.allclose(dequantize(integers, quant), found, atol=1e-6)
    assert name != "narrow" or np.abs(integers).max() <= 127


def test_weights_that_two_layers_share_are_left_alone_and_stored_once() -> None:
    model = model_of(
        "(float[N, 6] x, float[6, 6] c_w) => (float[N, 6] y) { a = MatMul(x, c_w) r = Relu(a) y = MatMul(r, c_w) }"
    )
    found = quantize(model, batches_of(model), scheme_of(), QuantOptions(compensate=True, correct=False)).model
    stored = [name for name, value in found.graph.initializers.items() if value.dtype == ir.DataType.INT8]
    weights = [name for name in stored if found.graph.initializers[name].shape.rank() == 2]  # type: ignore[union-attr]
    assert len(weights) == 1


def gptq(weight: Array, quant: TensorQuant, layout: Layout, inputs: list[NDArray[np.float32]]) -> Array:
    """Column by column as the paper has it: each error is handed to later inputs by the root of H's inverse."""
    scales = layout.matrix(np.broadcast_to(spread(quant, weight.shape), weight.shape))
    groups = []
    for group, (matrix, scale) in enumerate(zip(layout.matrix(weight), scales, strict=True)):
        rows = np.concatenate([layout.rows(one)[group] for one in inputs]).astype(np.float64)
        gram = rows.T @ rows
        order = np.argsort(-np.diag(gram), kind="stable")
        damped = gram[np.ix_(order, order)] + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
        upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        left, found = matrix[:, order].astype(np.float64), np.empty_like(matrix)
        for j, place in enumerate(order):
            column = scale[:, place]
            integers = nearest((left[:, j] / column).astype(np.float32), quant).astype(np.float32)
            found[:, place] = (integers - quant.zero_point) * column
            left[:, j:] -= np.outer((left[:, j] - found[:, place]) / upper[j, j], upper[j, j:])
        groups.append(found)
    return layout.weight(np.stack(groups))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_rounding_by_the_factor_of_the_moments_is_gptqs_by_that_of_their_inverse(name: str, dtype: str) -> None:
    model, node, weight, layout = layer(name)
    quant = quantize_weight(weight, node, TensorFormat(dtype, granularity="channel"))
    inputs = [batch["x"] for batch in batches_of(model, count=3)]
    found = compensate(weight, quant, layout, factorize(layout, inputs))
    assert np.mean(~np.isclose(found, gptq(weight, quant, layout, inputs), atol=1e-6)) < 0.01, "ties aside"


def test_products_wider_than_a_block_of_inputs_are_rounded_as_well_as_by_gptq() -> None:
    rng = np.random.default_rng(4)
    node = model_of(LAYERS["transposed"]).graph[0]
    weight = rng.normal(size=(24, 301)).astype(np.float32)
    layout = find_layout(node, weight.shape)
    assert isinstance(layout, Layout)
    quant = quantize_weight(weight, node, INT4)
    mixing = rng.normal(size=(301, 301)).astype(np.float32)
    inputs = [rng.normal(size=(200, 301)).astype(np.float32) @ mixing for _ in range(3)]
    found = compensate(weight, quant, layout, factorize(layout, inputs))
    theirs, plain = gptq(weight, quant, layout, inputs), dequantize(round_weight(weight, quant), quant)
    assert error(layout, weight, found, inputs) < 1.01 * error(layout, weight, theirs, inputs)
    assert error(layout, weight, found, inputs) < 0.5 * error(layout, weight, plain, inputs)


@pytest.mark.parametrize("read", ["n", "m"])
def test_layers_that_read_one_value_alike_share_its_factor(monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    """Three products of one normalization are one factor; a layer behind it needs one of its own."""
    body = (
        "(float[N, 6] x, float[6, 4] c_q, float[6, 4] c_k, float[6, 5] c_v) => (float[N, 4] y, float[N, 4] z, "
        f"float[N, 5] w) {{ n = Relu(x) m = Abs(x) y = MatMul(n, c_q) z = MatMul(n, c_k) w = MatMul({read}, c_v) }}"
    )
    model, calls = model_of(body), []
    monkeypatch.setattr(np.linalg, "cholesky", lambda array, real=np.linalg.cholesky: calls.append(1) or real(array))
    quantize(model, batches_of(model), scheme_of())
    assert len(calls) == {"n": 1, "m": 2}[read]


@pytest.mark.parametrize("terms", [5, 200])
def test_rounding_again_never_errs_more_and_ends_where_no_single_weight_errs_less(terms: int) -> None:
    random = np.random.default_rng(terms)
    read = random.standard_normal((3 * terms, terms)) @ random.standard_normal((terms, terms))
    read[:, 2] = 0  # says nothing about its weights
    gram = (read.T @ read / len(read)).astype(np.float32)
    damped = gram.astype(np.float64) + DAMPING * np.diagonal(gram).mean() * np.eye(terms)
    factor = factor_of(gram[None].copy())
    order = factor.order[0]
    wanted = random.standard_normal((terms, 40)).astype(np.float32)[order]
    step = np.float32(0.5)

    def on_lattice(row: Array, _: slice) -> Array:
        return np.asarray(np.clip(np.rint(row / step), -3, 4) * step, np.float32)

    def errs(rounded: Array) -> np.ndarray:
        error = np.empty_like(wanted, np.float64)
        error[order] = wanted - rounded
        return np.einsum("io,ij,jo->o", error, damped, error)

    rounded = round_in_turn(wanted[None], factor.lower, on_lattice)[0]
    before = first = errs(rounded)
    for _ in range(50):
        last = rounded.copy()
        round_again(wanted, rounded, gram, order, on_lattice)
        assert (errs(rounded) <= before * (1 + 1e-5)).all()
        before = errs(rounded)
        if (rounded == last).all():
            break
    assert (rounded == last).all()
    assert (before < first).any()
    for position in range(terms):
        for move in (-step, step):
            other = rounded.copy()
            other[position] = on_lattice(other[position] + move, slice(0, 1))
            assert (errs(other) >= before * (1 - 1e-5)).all()


@pytest.mark.parametrize("terms", [7, 512, 1300])
def test_a_factor_made_some_columns_at_a_time_is_numpys(terms: int) -> None:
    read = np.random.default_rng(terms).standard_normal((2 * terms, terms)).astype(np.float32)
    gram = read.T @ read / np.float32(len(read))
    factor = gram.copy()
    factor_in_place(factor)
    assert np.allclose(factor, np.linalg.cholesky(gram), rtol=1e-4, atol=1e-6)
