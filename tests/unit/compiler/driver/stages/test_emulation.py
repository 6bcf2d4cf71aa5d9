"""What an emulator is given to run is decided by the work of the model, before anything runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from language_models import SIZE, in_blocks, tiny_decoder, windows

from compiler.driver.stages.emulation import (
    FLOAT_MACS_PER_S,
    INTEGER_MACS_PER_S,
    choose_points,
    fewer_tokens,
    reckon,
    up_to,
)
from compiler.driver.stages.reference import ParityCase
from compiler.model.decoder import find_decoder
from compiler.model.reference import Unoptimized
from compiler.target.scheme import BlockFormat

HEADS = SIZE.heads * SIZE.head_width


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny_decoder()


def points(model: ir.Model) -> tuple[ParityCase, ...]:
    sizes = ((1, 0), (1, 8), (16, 15))
    return tuple(
        ParityCase(f"{length} behind {past}", windows(model, 1, length=length, past=past)[0], {})
        for length, past in sizes
    )


def test_the_work_is_that_of_the_sizes_of_the_inputs(model: ir.Model) -> None:
    (_, one), (_, behind), (seconds, many) = (reckon(model, point.inputs) for point in points(model))
    # of each layer: queries and keys, and probabilities and values, of each head
    attention = SIZE.layers * 2 * HEADS
    assert behind - one == attention * 8
    # one token is reckoned as half of two, of which the first need not see the second
    assert many == 16 * (one - 2 * attention) + attention * 16 * 31
    assert seconds == pytest.approx(many / FLOAT_MACS_PER_S)


def test_products_of_rounded_values_are_reckoned_as_sums_of_integers(model: ir.Model) -> None:
    case = points(model)[0]
    seconds, total = reckon(in_blocks(BlockFormat(8, 64, symmetric=True), rounds=True), case.inputs)
    floats, whole = reckon(model, case.inputs)
    assert total == whole
    attention = SIZE.layers * 2 * HEADS * 2  # of two tokens, halved
    assert seconds == pytest.approx(attention / FLOAT_MACS_PER_S + (total - attention) / INTEGER_MACS_PER_S)
    assert seconds < floats


def test_what_does_not_end_in_the_time_left_is_not_executed_and_says_why(model: ir.Model) -> None:
    cases = points(model)
    needed = [reckon(model, case.inputs)[0] for case in cases]
    chosen, left_out = choose_points(model, cases, seconds=sum(needed))
    assert chosen == cases and not left_out
    chosen, left_out = choose_points(model, cases, seconds=sum(needed) - needed[0] / 2)
    assert chosen == cases[:2]
    (one,) = left_out
    assert one.sizes == "16 behind 15" and "of --emulate-seconds" in one.why and "multiply-accumulates" in one.why


def test_a_prompt_too_long_is_read_in_part_behind_the_same_cache(model: ir.Model) -> None:
    case = points(model)[2]
    seconds = reckon(model, windows(model, 1, length=4, past=15)[0])[0]
    ((label, inputs),) = fewer_tokens(model, case, find_decoder(model), seconds=seconds).items()
    assert label == "sequence=4, past=15" and inputs["attention_mask"].shape == (1, 19)
    run = Unoptimized(model).run
    # a token sees those before it alone
    np.testing.assert_allclose(run(inputs)["logits"], run(case.inputs)["logits"][:, :4], rtol=1e-4, atol=1e-4)
    assert not fewer_tokens(model, case, find_decoder(model), seconds=0)


def test_what_is_not_delivered_is_run_up_to_the_sizes_that_are_compared(model: ir.Model) -> None:
    cases = points(model)
    assert up_to(cases, "1 behind 8") == cases[:2] and up_to(cases, "fixed") == cases
