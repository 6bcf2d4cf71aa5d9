"""Factors moved across layers: the float model stays what it was, and where it would not, nothing is moved."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quant_models import batches_of, model_of, scheme_of

from compiler.compress.quant import QuantOptions, quantize
from compiler.compress.quant.equalize import equalize
from compiler.compress.quant.migrate import find_sites, reader_ranges, source_ranges
from compiler.compress.quant.smooth import smooth
from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, Array, compare_all
from compiler.model.reference import Unoptimized
from compiler.target.scheme import TensorFormat

DEPTHWISE = (
    "(float[N, 3, 9, 9] x, float[8, 3, 1, 1] c_a, float[8] c_ab, float[8, 1, 3, 3] c_b, float[8] c_bb,"
    " float[5, 8, 1, 1] c_c) => (float[N, 5, 4, 4] y) "
    "{ a = Conv(x, c_a, c_ab) r = Relu(a) b = Conv<group = 8, pads = [1, 1, 1, 1]>(r, c_b, c_bb) l = LeakyRelu(b)"
    " p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(l) y = Conv(p, c_c) }"
)
NORMALIZED = (
    "(float[N, 3, 6] x, float[6] c_s, float[6] c_t, float[6, 4] c_q, float[6, 4] c_k) => "
    "(float[N, 3, 4] y, float[N, 3, 4] z) "
    "{ n = LayerNormalization<axis = -1>(x, c_s, c_t) y = MatMul(n, c_q) z = MatMul(n, c_k) }"
)
LINEAR = (
    "(float[N, 6] x, float[6, 8] c_w, float[8] c_b, float[4, 8] c_v, float[4] c_d) => (float[N, 4] y) "
    "{ a = MatMul(x, c_w) b = Add(a, c_b) r = Relu(b) y = Gemm<transB = 1>(r, c_v, c_d) }"
)
GROUPED = (
    "(float[N, 4, 6] x, float[6, 2, 3] c_a, float[8, 3, 1] c_b) => (float[N, 8, 4] y) "
    "{ a = Conv<group = 2>(x, c_a) y = Conv<group = 2>(a, c_b) }"
)
MODELS = {"depthwise": (DEPTHWISE, 2), "normalized": (NORMALIZED, 1), "linear": (LINEAR, 1), "grouped": (GROUPED, 1)}


def outputs(model: ir.Model, batches: list[dict[str, Array]]) -> dict[str, Array]:
    found = [Unoptimized(model).run(batch) for batch in batches]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def uneven(model: ir.Model) -> ir.Model:
    """The first weight with channels that differ by a factor of a hundred, as trained depthwise networks have them."""
    value = next(iter(model.graph.initializers.values()))
    array = value.const_value.numpy()  # type: ignore[union-attr]
    axis = 0 if array.ndim > 2 or array.ndim == 1 else 1
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    value.const_value = ir.tensor(array * np.geomspace(0.1, 10, array.shape[axis], dtype=np.float32).reshape(shape))
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["weights", "activations"])
def test_the_changed_model_computes_what_it_did_and_the_given_one_is_left_alone(name: str, how: str) -> None:
    body, sites = MODELS[name]
    model = uneven(model_of(body))
    before = {key: value.const_value.numpy().copy() for key, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    batches = batches_of(model)
    found = equalize(model) if how == "weights" else smooth(model, batches)
    assert len(find_sites(model)) == sites
    check_model(found)
    want, got = outputs(model, batches), outputs(found, batches)
    assert all(TOLERANCES["fp32"].accepts(stats) for stats in compare_all(want, got).values())
    changed = {
        key
        for key, array in before.items()
        if key not in found.graph.initializers or not np.array_equal(array, found.graph.initializers[key].const_value)  # type: ignore[arg-type]
    }
    assert changed, "something was moved"
    for key, array in before.items():
        assert np.array_equal(model.graph.initializers[key].const_value.numpy(), array)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_equalized_ranges_are_equal_on_both_sides(name: str) -> None:
    for site in find_sites(equalize(uneven(model_of(MODELS[name][0])))):
        assert np.allclose(source_ranges(site), reader_ranges(site), rtol=0.05)


NEAR_MISSES = {
    "another reader": LINEAR.replace("(float[N, 4] y)", "(float[N, 4] y, float[N, 8] z)").replace(
        "y = Gemm", "z = Sigmoid(b) y = Gemm"
    ),
    "a graph output": LINEAR.replace("(float[N, 4] y)", "(float[N, 4] y, float[N, 8] r)"),
    "no homogeneous step": LINEAR.replace("Relu(b)", "Sigmoid(b)"),
    "a limit": LINEAR.replace("float[4] c_d)", "float[4] c_d, float c_low, float c_high)").replace(
        "Relu(b)", "Clip(b, c_low, c_high)"
    ),
    "a weight of two": (
        "(float[N, 6] x, float[6, 6] c_w) => (float[N, 6] y) { a = MatMul(x, c_w) r = Relu(a) y = MatMul(r, c_w) }"
    ),
    "a reader that adds": NORMALIZED.replace(
        "y = MatMul(n, c_q)", "m = MatMul(n, c_q) o = Add(n, n) y = MatMul(o, c_k)"
    ).replace("z = MatMul(n, c_k)", "z = Identity(m)"),
    "a weight at run time": (
        "(float[N, 6] x, float[6, 8] w, float[8, 4] c_v) => (float[N, 4] y) { a = MatMul(x, w) y = MatMul(a, c_v) }"
    ),
    "a bias for all channels": LINEAR.replace("float[8] c_b", "float[1] c_b"),
    "channels elsewhere": (
        "(float[N, 3, 5, 5] x, float[4, 3, 3, 3] c_w, float[3, 2] c_v) => (float[N, 4, 3, 2] y) "
        "{ a = Conv(x, c_w) y = MatMul(a, c_v) }"
    ),
    "a normalization over two dimensions": NORMALIZED.replace("axis = -1", "axis = 1").replace(
        "float[6] c_s, float[6] c_t", "float[3, 6] c_s, float[3, 6] c_t"
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_there_is_no_site_at(name: str) -> None:
    model = model_of(NEAR_MISSES[name])
    assert not find_sites(model)
    found = equalize(model)
    assert [node.op_type for node in found.graph] == [node.op_type for node in model.graph]
    assert set(found.graph.initializers) == set(model.graph.initializers)


def test_a_channel_of_zeros_is_left_as_it_is() -> None:
    model = model_of(LINEAR)
    value = model.graph.initializers["c_w"]
    array = value.const_value.numpy().copy()  # type: ignore[union-attr]
    array[:, 2] = 0
    value.const_value = ir.tensor(array)
    found = equalize(model)
    batches = batches_of(model)
    want, got = outputs(model, batches), outputs(found, batches)
    assert all(TOLERANCES["fp32"].accepts(stats) for stats in compare_all(want, got).values())


def test_outliers_of_a_normalization_cost_less_when_they_are_smoothed() -> None:
    model = uneven(model_of(NORMALIZED))
    batches = batches_of(model, count=8)
    want = outputs(model, batches)
    plain, better = (
        quantize(model, batches, scheme_of(TensorFormat("int8")), QuantOptions(observer="min-max", balance=balance))
        for balance in ("none", "activations")
    )
    errors = [
        sum(float(np.square(want[name] - array).sum()) for name, array in outputs(one.model, batches).items())
        for one in (plain, better)
    ]
    assert errors[1] < 0.7 * errors[0]


RESIDUAL = (
    "(float[N, 3, 6] x, float[6] c_s, float[6] c_t, float[6, 4] c_q, float[6, 4] c_k, float[4, 6] c_o) => "
    "(float[N, 3, 6] y) { n = LayerNormalization<axis = -1>(x, c_s, c_t) q = MatMul(n, c_q) k = MatMul(n, c_k)"
    " a = Add(q, k) g = Sigmoid(a) o = MatMul(g, c_o) y = Add(o, n) }"
)


def test_a_value_that_others_read_too_is_smoothed_by_a_mul_before_its_products_alone() -> None:
    model = uneven(model_of(RESIDUAL))
    batches = batches_of(model)
    found = smooth(model, batches)
    check_model(found)
    assert not find_sites(model)
    assert [node.op_type for node in found.graph].count("Mul") == 2, "of the normalization, and of the sigmoid"
    want, got = outputs(model, batches), outputs(found, batches)
    assert all(TOLERANCES["fp32"].accepts(stats) for stats in compare_all(want, got).values())
    readers = {node.op_type for node, _ in next(iter(found.graph)).outputs[0].uses()}
    assert readers == {"Mul", "Add"}, "both products read the Mul, the sum what was there before"
