"""Scales of filters of zeros, of faint ones and of values that hardly move: positive in every format and precision."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from quant_models import EITHER, UNSIGNED, batches_of, model_of, scheme_of

from compiler.compress.quant import quantize
from compiler.compress.quant.scales import storable
from compiler.compress.quant.weights import dequantize, quantize_weight, round_weight
from compiler.model.graph import check_model
from compiler.model.numerics import compare
from compiler.model.reference import Unoptimized
from compiler.target.scheme import TensorFormat

BODY = (
    "(float[N, 4, 6, 6] x, float[8, 4, 3, 3] c_w, float[8] c_b, float[6, 8, 1, 1] c_v) => (float[N, 6, 4, 4] y) "
    "{ c = Conv(x, c_w, c_b) r = Relu(c) y = Conv(r, c_v) }"
)
FORMATS = {
    "int8": TensorFormat("int8", granularity="channel", narrow=True),
    "uint8": TensorFormat("uint8", granularity="channel"),
    "int4": TensorFormat("int4", granularity="channel"),
    "float8": TensorFormat("float8e4m3fn", granularity="channel"),
    "one scale": TensorFormat("int8"),
}
FILTERS = {"zeros": 0.0, "denormal": 1e-39, "nothing in float16": 1e-9, "denormal in float16": 1e-6, "faint": 1e-4}
HALVES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def model_with(factor: float, *, axis: int = 0) -> ir.Model:
    """Filters (axis 0) or inputs (axis 1) number 1 and 3 are those of a plain model, times a factor."""
    model = model_of(BODY)
    weight = model.graph.initializers["c_w"]
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    array[(slice(None),) * axis + ([1, 3],)] *= np.float32(factor)
    weight.const_value = ir.tensor(array)
    return model


@pytest.mark.parametrize("compute", ["fp32", "fp16"])  # ONNX Runtime has no DequantizeLinear in bfloat16
@pytest.mark.parametrize("factor", FILTERS)
@pytest.mark.parametrize("format_", FORMATS)
def test_every_scale_is_positive_as_it_is_stored_and_the_result_is_near(
    format_: str, factor: str, compute: str
) -> None:
    model = model_with(FILTERS[factor])
    batches = batches_of(model)
    scheme = replace(scheme_of(weight=FORMATS[format_]), compute=compute)
    found = quantize(model, batches, scheme)
    check_model(found.model)
    scales = [value for name, value in found.model.graph.initializers.items() if "_scale" in name]
    assert len(scales) >= 4
    for value in scales:
        array = np.asarray(value.const_value.numpy(), np.float32)  # type: ignore[union-attr]
        assert (array > 0).all() and np.isfinite(array).all(), value.name
    want, got = (Unoptimized(one).run(batches[0])["y"] for one in (model, found.model))
    assert compare(want, got).sqnr_db > (10.0 if format_ == "int4" else 20.0)


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
@pytest.mark.parametrize("reach", [0.0, 1e-30, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("moving", [EITHER, UNSIGNED, TensorFormat("float8e4m3fn")])
def test_values_that_hardly_move_have_a_scale(moving: TensorFormat, reach: float, compute: str) -> None:
    model = model_of(
        "(float[N, 6] x, float[6, 4] c_w, float[1] c_by) => (float[N, 4] y) "
        "{ s = Mul(x, c_by) r = Relu(s) y = MatMul(r, c_w) }"
    )
    model.graph.initializers["c_by"].const_value = ir.tensor(np.array([reach], np.float32))
    plan = quantize(model, batches_of(model), replace(scheme_of(moving), compute=compute)).plan
    (scale,) = plan.tensors["r"].scale
    assert scale > 0 and (compute == "fp32" or np.float16(scale) == scale)


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
def test_scales_are_numbers_of_the_type_they_are_stored_in_and_never_smaller_than_they_should_be(compute: str) -> None:
    rng = np.random.default_rng(5)
    scales = np.exp2(rng.uniform(-30, 3, size=500)).astype(np.float32)
    stored = storable(scales, compute)
    assert np.array_equal(stored.astype(HALVES[compute]).astype(np.float32), stored)
    assert (stored >= scales).all()
    plain = scales > 2.0**-13
    assert (stored[plain] <= scales[plain] * 1.01).all()


def test_small_scales_stay_small_where_the_whole_tensor_is() -> None:
    """Only what is faint beside other channels is given a larger scale; a layer of small weights keeps its own."""
    scales = np.array([3e-6, 2e-6, 1e-6], np.float32)
    assert np.allclose(storable(scales, "fp16"), scales, rtol=0.06)
    assert np.array_equal(storable(scales, "fp32"), scales)
    faint = storable(np.array([1.0, 1e-9], np.float32), "fp16")
    assert faint[1] == 2.0**-14


def test_blocks_of_zeros_have_a_scale_that_others_have_too() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    weight[4:, 2] = 0
    node = model_of("(float[N, 8] x, float[8, 4] c_w) => (float[N, 4] y) { y = MatMul(x, c_w) }").graph[0]
    quant = quantize_weight(weight, node, TensorFormat("int4", granularity="block", block_size=4), compute="fp16")
    assert min(quant.scale) > 1e-3
    assert not dequantize(round_weight(weight, quant), quant)[4:, 2].any()
