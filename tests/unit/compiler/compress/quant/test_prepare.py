"""Hard-swish as exporters of opset 11 spell it, between two convolutions: one operator, read and made quantized."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from quant_models import batches_of, model_of, scheme_of

from compiler.compress.quant import calibrate, measure_sensitivity, quantize
from compiler.compress.quant.prepare import prepare
from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, compare, compare_all
from compiler.model.reference import Unoptimized

SPELLINGS = {
    "product, then quotient": "s = Add(a, three) c = Clip(s, zero, six) p = Mul(a, c) h = Div(p, six)",
    "quotient, then product": "s = Add(a, three) c = Clip(s, zero, six) p = Div(c, six) h = Mul(a, p)",
    "hard sigmoid": "g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(a) h = Mul(a, g)",
}
NUMBERS = "<float three = {3.0}, float zero = {0.0}, float six = {6.0}>"
WEIGHTS = "float[N,3,8,8] x, float[8,3,3,3] c_w, float[8] c_b, float[4,8,1,1] c_v"


def network(spelling: str, opset: int) -> ir.Model:
    return model_of(
        f"({WEIGHTS}) => (float[N,4,6,6] y) {NUMBERS} "
        f"{{ a = Conv(x, c_w, c_b) {SPELLINGS[spelling]} y = Conv(h, c_v) }}",
        opset=opset,
    )


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_hard_swish_between_convolutions_is_one_operator_and_its_result_is_quantized(spelling: str, opset: int) -> None:
    model = network(spelling, opset)
    batches = batches_of(model, count=5)
    found = quantize(model, batches, scheme_of(), calibrated=calibrate(model, batches, scheme_of()))
    check_model(found.model)
    between = [node.op_type for node in found.model.graph if "Linear" not in node.op_type]
    if opset < 14:  # from 14 on fuse-activations has done so before
        assert between == ["Conv", "HardSwish", "Conv"]
    assert found.plan.quantized == (model.graph[0].name, model.graph[-1].name)
    want, got = (Unoptimized(one).run(batches_of(model, seed=9)[0])["y"] for one in (model, found.model))
    assert compare(want, got).sqnr_db > 25


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_prepared_model_computes_the_same(spelling: str, opset: int) -> None:
    model = network(spelling, opset)
    found = prepare(model)
    assert [node.op_type for node in found.graph] == ["Conv", "HardSwish", "Conv"] and all(n.name for n in found.graph)
    for batch in batches_of(model):
        want, got = Unoptimized(model).run(batch), Unoptimized(found).run(batch)
        assert all(TOLERANCES["fp32"].accepts(stats) for stats in compare_all(want, got).values())


def test_layers_of_such_a_model_are_ranked() -> None:
    model = network("product, then quotient", 11)
    batches = batches_of(model)
    plan = quantize(model, batches, scheme_of()).plan
    assert sorted(error.op for error in measure_sensitivity(model, plan, batches)) == ["Conv", "Conv"]


@pytest.mark.parametrize(
    "between", ["s = Add(a, six) c = Clip(s, zero, six) p = Mul(a, c) h = Div(p, six)", "h = Clip(a, zero, six)"]
)
def test_what_is_no_hard_swish_is_left_as_it_is(between: str) -> None:
    body = f"({WEIGHTS}) => (float[N,4,6,6] y) {NUMBERS} {{ a = Conv(x, c_w, c_b) {between} y = Conv(h, c_v) }}"
    model = model_of(body, opset=12)
    assert prepare(model) is model
