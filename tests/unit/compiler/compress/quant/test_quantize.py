"""Observing, choosing and the whole of it: numerics, refusals, warnings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quant_models import SIGNED, UNSIGNED, batches_of, model_of, scheme_of

from compiler.compress.quant import (
    QuantOptions,
    choose,
    is_quantized,
    measure_sensitivity,
    observations_from_bytes,
    observe,
    plan_from_dict,
    quantize,
)
from compiler.compress.quant.apply import apply
from compiler.compress.quant.correct import estimate_shift
from compiler.compress.quant.options import Observer
from compiler.compress.quant.sensitivity import _behind, _parts, _with_frontiers
from compiler.compress.quant.weights import dequantize, round_weight
from compiler.errors import DataError, UnsupportedModel
from compiler.model.numerics import Arrays, compare
from compiler.model.reference import Unoptimized
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat

BODY = (
    """(float[N,3,8,8] x, float[8,3,3,3] c_w, float[8] c_b, float[8,8,3,3] c_v, float[128,5] c_u) => (float[N,5] y) {
    a = Conv(x, c_w, c_b)  r = Relu(a)  b = Conv<pads=[1,1,1,1]>(r, c_v)  s = Add(b, r)  t = Relu(s)
    m = MaxPool<kernel_shape=[2,2], strides=[1,1]>(t)  p = MaxPool<kernel_shape=[2,2]>(t)
    k = Conv(m, c_v)  l = MaxPool<kernel_shape=[2,2], strides=[1,1]>(k)  f = Flatten(k)
    g = MatMul(f, c_g)  y = Relu(g) }""".replace("float[128,5] c_u", "float[72,5] c_g")
    .replace("p = MaxPool<kernel_shape=[2,2]>(t)", "")
    .replace("l = MaxPool<kernel_shape=[2,2], strides=[1,1]>(k)", "")
)


def sqnr(model: ir.Model, other: ir.Model, batches: list[Arrays]) -> float:
    float_, low = Unoptimized(model), Unoptimized(other)
    return min(compare(float_.run(batch)["y"], low.run(batch)["y"]).sqnr_db for batch in batches)


@pytest.mark.parametrize("observer", ["min-max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("moving", [SIGNED, UNSIGNED])
def test_results_are_close_to_the_float_models(observer: Observer, moving: object) -> None:
    model = model_of(BODY)
    found = quantize(model, batches_of(model), scheme_of(moving), QuantOptions(observer=observer))  # type: ignore[arg-type]
    assert 25.0 < sqnr(model, found.model, batches_of(model, seed=11)) < 60.0


def test_the_plan_survives_json_and_prints_every_layer() -> None:
    model = model_of(BODY)
    plan = quantize(model, batches_of(model), scheme_of()).plan
    assert plan_from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert all(layer.node in str(plan) for layer in plan.layers)


def test_a_quantized_model_is_recognised_and_never_quantized_twice() -> None:
    model = model_of(BODY)
    once = quantize(model, batches_of(model), scheme_of()).model
    assert is_quantized(once) and not is_quantized(model)
    with pytest.raises(UnsupportedModel, match="quantized already"):
        quantize(once, batches_of(model), scheme_of())


def test_without_calibration_data_nothing_is_quantized() -> None:
    with pytest.raises(DataError, match="calibration data"):
        quantize(model_of(BODY), None, scheme_of())
    with pytest.raises(DataError, match="no calibration samples"):
        quantize(model_of(BODY), [], scheme_of())


def test_ranges_do_not_depend_on_the_order_or_the_size_of_batches() -> None:
    model = model_of(BODY)
    batch = batches_of(model, count=1, size=24)[0]["x"] * np.geomspace(0.01, 30, 24).reshape(-1, 1, 1, 1)
    x = batch.astype(np.float32)
    first = observe(model, [{"x": x}])
    second = observe(model, [{"x": part} for part in np.split(x, 8)[::-1]])
    for name, seen in first.tensors.items():
        assert np.array_equal(seen.counts, second.tensors[name].counts)
        assert (seen.low, seen.high, seen.zeros) == tuple(
            getattr(second.tensors[name], key) for key in ("low", "high", "zeros")
        )
    assert choose(model, first, scheme_of()) == choose(model, second, scheme_of())


def test_observations_are_read_back_as_they_were() -> None:
    model = model_of(BODY)
    seen = observe(model, batches_of(model))
    again = observations_from_bytes(seen.to_bytes())
    assert again.samples == seen.samples == 32
    assert choose(model, again, scheme_of()) == choose(model, seen, scheme_of())


def test_data_are_streamed_and_memory_is_bounded_by_the_batches_in_work() -> None:
    model = model_of(BODY)
    alive = [0, 0]

    class Counted(dict):  # type: ignore[type-arg]
        def __init__(self, inputs: Arrays) -> None:
            super().__init__(inputs)
            alive[0] += 1
            alive[1] = max(alive)

        def __del__(self) -> None:
            alive[0] -= 1

    def stream() -> Iterator[Arrays]:
        for batch in batches_of(model, count=1) * 200:
            yield Counted(batch)

    assert observe(model, stream()).samples == 1600
    assert alive[1] < 40


def test_nan_is_told_with_the_node_that_made_it_first() -> None:
    body = "(float[N,4] x, float[4,4] c_w) => (float[N,4] y) { a = Log(x) b = Relu(a) y = MatMul(b, c_w) }"
    model = model_of(body)
    with pytest.raises(DataError, match="'a' are NaN") as caught:
        observe(model, batches_of(model))
    assert caught.value.where == "Log 'node0'"


def test_poor_calibration_data_are_warned_of_with_their_effect() -> None:
    model = model_of(BODY)
    x = np.concatenate([np.zeros((2, 3, 8, 8), np.float32), batches_of(model)[0]["x"][:1].repeat(4, axis=0)])
    few, constant, repeated = quantize(model, [{"x": x}], scheme_of()).warnings
    assert few.startswith("6 calibration samples") and "clipped" in few
    assert constant.startswith("2 of 6") and repeated.startswith("4 of 6")


def test_good_calibration_data_are_not_warned_of() -> None:
    model = model_of(BODY)
    assert quantize(model, batches_of(model), scheme_of()).warnings == ()


def test_a_tensor_of_zeros_is_no_obstacle() -> None:
    body = "(float[N,4] x, float[4,4] c_w) => (float[N,4] y) { a = Sub(x, x) b = MatMul(a, c_w) y = Add(b, x) }"
    model = model_of(body)
    found = quantize(model, batches_of(model), scheme_of())
    assert np.isfinite(Unoptimized(found.model).run(batches_of(model)[0])["y"]).all()


def test_the_layer_that_errs_most_comes_first_and_layers_that_hand_on_are_left_out() -> None:
    model = model_of(BODY)
    weight = model.graph.initializers["c_g"]
    assert weight.const_value is not None
    outlier = weight.const_value.numpy().copy()
    outlier[0] *= 200  # one input's weights dwarf the others in every channel
    weight.const_value = ir.tensor(outlier, name="c_g")
    batches = batches_of(model)
    errors = measure_sensitivity(model, quantize(model, batches, scheme_of()).plan, batches)
    assert errors[0].op == "MatMul"
    assert {error.op for error in errors} == {"Conv", "Add", "MatMul"}
    assert [error.sqnr_db for error in errors] == sorted(error.sqnr_db for error in errors)


def test_a_layers_error_is_that_of_the_whole_model_and_what_stands_before_it_is_not_run_again() -> None:
    model = model_of(BODY)
    batches = batches_of(model)
    plan = quantize(model, batches, scheme_of()).plan
    whole = apply(model, replace(plan, tensors={}, weights={}, reads={}, int_biases=(), compute="fp32"))
    want = Unoptimized(whole).run(batches[0])
    errors = {error.node: error.sqnr_db for error in measure_sensitivity(model, plan, batches[:1])}
    order = [str(node.name) for node in whole.graph]
    behind = {}
    for (node, _, part), frontier in _with_frontiers(whole, list(_parts(plan)), batches[:1]):
        alone = apply(model, part)
        assert errors[node] == compare(want["y"], Unoptimized(alone).run(batches[0])["y"]).sqnr_db
        behind[node] = {str(other.name) for other in _behind(alone, frontier).graph} & set(order)
    assert len(behind) > 3
    assert behind == {node: set(order[order.index(node) :]) for node in behind}


def test_the_opset_that_a_plan_needs_is_reached_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(BODY)
    batches = batches_of(model, count=1)
    plan = quantize(model, batches, scheme_of()).plan
    raised, convert = [], onnx.version_converter.convert_version
    monkeypatch.setattr(
        onnx.version_converter, "convert_version", lambda proto, opset: raised.append(opset) or convert(proto, opset)
    )
    newer = replace(plan, opset=model.opset_imports[""] + 1)
    errors = measure_sensitivity(model, newer, batches)
    assert raised == [newer.opset] and len(errors) > 3
    assert errors == measure_sensitivity(model, plan, batches)


def test_corrected_biases_take_away_what_quantization_shifts() -> None:
    body = """(float[N,3,8,8] x, float[8,3,3,3] c_w, float[8] c_b, float[4,8,3,3] c_v) => (float[N,4,4,4] y) {
        a = Conv(x, c_w, c_b)  r = Relu(a)  y = Conv(r, c_v) }"""
    model = model_of(body)
    coarse = scheme_of(weight=TensorFormat("int4", granularity="channel"))
    batches = batches_of(model, count=16)
    plain, corrected = (
        quantize(model, batches, coarse, QuantOptions(correct=correct)).model for correct in (False, True)
    )
    want, *found = (Unoptimized(one) for one in (model, plain, corrected))
    shifts = [
        np.abs(np.mean([one.run(batch)["y"] - want.run(batch)["y"] for batch in batches], axis=(0, 1, 3, 4))).mean()
        for one in found
    ]
    assert shifts[1] < 0.3 * shifts[0]


def test_a_correction_that_is_only_noise_is_not_made() -> None:
    rng = np.random.default_rng(5)
    expected = [rng.normal(size=(16, 4, 8)) for _ in range(4)]
    found = [array + rng.normal(size=array.shape) for array in expected]
    assert np.abs(estimate_shift(expected, found, 1)).max() < 0.06
    assert np.allclose(estimate_shift([one + 0.5 for one in expected], expected, 1), 0.5)


def test_weights_of_4_bits_compute_what_their_numbers_say_however_large_they_are() -> None:
    model = model_of("(float[N, 256] x, float[256, 129] c_w) => (float[N, 129] y) { y = MatMul(x, c_w) }")
    blocks = TensorFormat("int4", granularity="block", block_size=128)
    scheme = QuantScheme("int4", {"MatMul": OpScheme(weights={1: blocks})}, needs_calibration=False)
    found = quantize(model, None, scheme)
    (inputs,) = batches_of(model, count=1)
    weight = model.graph.initializers["c_w"].const_value.numpy()  # type: ignore[union-attr]
    (quant,) = found.plan.weights.values()
    want = inputs["x"] @ dequantize(round_weight(weight, quant), quant)
    assert np.allclose(Unoptimized(found.model).run(inputs)["y"], want, atol=1e-3)


def test_an_input_without_samples_is_neither_counted_nor_cut_into_rows() -> None:
    """A table of gains is the same for all samples; its first axis is channels, and fewer than there are samples."""
    body = "(float[4, 1, 1] gain, float[N, 4, 6, 6] x, float[3, 4, 1, 1] c_w) => (float[N, 3, 6, 6] y) "
    model = model_of(body + "{ m = Mul(x, gain) r = Relu(m) y = Conv(r, c_w) }")
    rng = np.random.default_rng(2)
    gain = np.abs(rng.normal(size=(4, 1, 1))).astype(np.float32)
    batches = [{"gain": gain, "x": rng.normal(size=(8, 4, 6, 6)).astype(np.float32)} for _ in range(5)]
    found = quantize(model, batches, scheme_of())
    assert found.observations is not None and found.observations.samples == 40
    assert found.warnings == ()
    assert sqnr(model, found.model, batches[:1]) > 25
