"""A cache in 8 bits: what attention reads, and what is given back, is what such a cache holds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from language_models import SIZE, tiny_decoder, windows

from compiler.compress.quant.apply import at_opset
from compiler.compress.weight_only import round_cache
from compiler.driver.stages.products import cut_at_roundings
from compiler.errors import UnsupportedModel
from compiler.model.decoder import find_decoder
from compiler.model.numerics import compare_all
from compiler.model.reference import Unoptimized
from compiler.passes.cached_attention import find_attentions


@pytest.fixture(scope="module")
def plain() -> ir.Model:
    return at_opset(tiny_decoder(), 21)


@pytest.fixture(scope="module")
def rounded(plain: ir.Model) -> ir.Model:
    model = plain.clone()
    round_cache(model, find_decoder(model))
    return model


def test_each_head_of_each_token_has_a_factor_of_its_own(plain, rounded):
    (inputs,) = windows(plain, 1, length=5, past=7)
    given, kept = Unoptimized(plain).run(inputs), Unoptimized(rounded).run(inputs)
    rows, got = given["present.0.key"], kept["present.0.key"]
    assert got.shape == (1, SIZE.kv_heads, 12, SIZE.head_width)
    step = np.abs(rows).max(axis=3, keepdims=True) / 127
    np.testing.assert_allclose(got, np.rint(rows / step) * step, rtol=1e-5, atol=1e-6)
    assert 25 < compare_all(given, kept)["logits"].sqnr_db < 60


def test_rows_that_were_rounded_before_stay_as_they_are(rounded):
    (inputs,) = windows(rounded, 1, length=5, past=7)
    run, pairs = Unoptimized(rounded).run, find_decoder(rounded).pairs
    first = run(inputs)
    again = run({**inputs, **{pair.past: first[pair.present][:, :, :7] for pair in pairs}})
    assert min(stats.sqnr_db for stats in compare_all(first, again).values()) > 110


def test_its_inputs_outputs_and_attention_are_found_as_before(plain, rounded):
    assert find_decoder(rounded) == find_decoder(plain)
    assert [match.is_rounded for match in find_attentions(rounded)] == [True] * SIZE.layers
    assert [match.is_rounded for match in find_attentions(plain)] == [False] * SIZE.layers


def test_an_output_is_found_behind_its_rounding_where_names_say_nothing(rounded):
    model = rounded.clone()
    decoder = find_decoder(model)
    names = {pair.present: f"new_{number}" for number, pair in enumerate(decoder.pairs)}
    for value in model.graph.outputs:
        value.name = names.get(str(value.name), value.name)
    assert [pair.present for pair in find_decoder(model).pairs] == list(names.values())


def test_parity_of_products_is_not_cut_at_the_cache(rounded):
    assert cut_at_roundings(rounded)[1] == ()


def test_a_cache_that_is_joined_in_another_way_is_refused(plain):
    model = plain.clone()
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.1.value")
    same = ir.node("Identity", [past], name="same")
    same.outputs[0].name, same.outputs[0].type, same.outputs[0].shape = "same", past.type, past.shape
    past.replace_all_uses_with(same.outputs[0])
    same.replace_input_with(0, past)
    model.graph.insert_before(model.graph[0], same)
    with pytest.raises(UnsupportedModel, match=r"past_key_values.1.value' is not joined with new rows by one Concat"):
        round_cache(model, find_decoder(model))
