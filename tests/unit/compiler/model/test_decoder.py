"""The inputs and outputs of a decoder's cache belong together by name, or by the graph; others are refused by name."""

import onnx_ir as ir
import pytest
from language_models import tiny_decoder

from compiler.errors import UnsupportedModel
from compiler.model.decoder import find_decoder


def renamed(names: dict[str, str]) -> ir.Model:
    model = tiny_decoder()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(str(value.name), value.name)
    return model


def test_an_exported_decoder_is_paired_and_its_dimensions_are_known():
    decoder = find_decoder(tiny_decoder())
    assert (decoder.ids, decoder.logits, decoder.mask, decoder.positions) == (
        "input_ids",
        "logits",
        "attention_mask",
        "position_ids",
    )
    assert [(pair.past, pair.present) for pair in decoder.pairs] == [
        (f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}") for layer in (0, 1) for kind in ("key", "value")
    ]
    assert (decoder.batch, decoder.sequence, decoder.past, decoder.total) == (
        "batch",
        "sequence",
        "past",
        "past + sequence",
    )
    assert decoder.vocabulary == 256


def test_names_that_say_nothing_are_paired_by_the_graph():
    names = {f"present.{layer}.{kind}": f"out_{layer}{kind[0]}x" for layer in (0, 1) for kind in ("key", "value")}
    decoder = find_decoder(renamed(names))
    assert [pair.present for pair in decoder.pairs] == ["out_0kx", "out_0vx", "out_1kx", "out_1vx"]


def without_outputs(*names: str) -> ir.Model:
    model = tiny_decoder()
    for value in [value for value in model.graph.outputs if value.name in names]:
        model.graph.outputs.remove(value)
    return model


def with_flat_cache() -> ir.Model:
    model = tiny_decoder()
    next(value for value in model.graph.inputs if value.name == "past_key_values.1.key").shape = ir.Shape(["b", "p"])
    return model


def with_positions_before_heads() -> ir.Model:
    model = tiny_decoder()
    value = next(value for value in model.graph.inputs if value.name == "past_key_values.1.key")
    value.shape = ir.Shape(["b", "p", 2, 64])
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: without_outputs("present.1.value"), "'past_key_values.1.value' belongs to no output"),
        (lambda: without_outputs("logits"), "no output of three dimensions is left for the logits"),
        (lambda: renamed({"input_ids": "x"}), "no input holds token ids: it has"),
        (
            lambda: renamed({f"past_key_values.{n}.{k}": f"in_{n}{k}" for n in (0, 1) for k in ("key", "value")}),
            "the model has no cache",
        ),
        (with_flat_cache, "cache input 'past_key_values.1.key' of shape [b,p] is not"),
        (with_positions_before_heads, "cache input 'past_key_values.1.key' of shape [b,p,2,64] grows along axis 1"),
        (
            lambda: renamed({"past_key_values.1.key": "past_key_values.0.key.again"}),
            "'present.0.key' would belong to several inputs of the cache",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused_with_the_names(model, said):
    with pytest.raises(UnsupportedModel) as refused:
        find_decoder(model())
    assert said in str(refused.value)
