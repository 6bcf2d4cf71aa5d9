from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import apply, assert_left_alone, assert_same

from compiler.passes.merge_casts import MERGE_CASTS, holds


def test_cast_through_a_wider_type_goes_straight() -> None:
    model, _ = apply(
        MERGE_CASTS, "g (float[N] x) => (float16[N] y) { d = Cast<to=11>(x) y = Cast<to=10>(d) }", tolerance="exact"
    )
    assert_same(model, "g (float[N] x) => (float16[N] y) { y = Cast<to=10>(x) }")


def test_cast_there_and_back_through_a_wider_type_is_gone() -> None:
    model, _ = apply(
        MERGE_CASTS,
        "g (float[N] x) => (float[N] y) { d = Cast<to=11>(x) f = Cast<to=1>(d) y = Relu(f) }",
        tolerance="exact",
    )
    assert_same(model, "g (float[N] x) => (float[N] y) { y = Relu(x) }")


def test_cast_to_its_own_type_is_gone() -> None:
    model, _ = apply(MERGE_CASTS, "g (float[N] x) => (float[N] y) { f = Cast<to=1>(x) y = Relu(f) }", tolerance="exact")
    assert_same(model, "g (float[N] x) => (float[N] y) { y = Relu(x) }")


def test_cast_that_rounds_is_left_alone_with_the_reason() -> None:
    text = "g (float[N] x) => (float[N] y) { h = Cast<to=10>(x) y = Cast<to=1>(h) }"
    assert assert_left_alone(MERGE_CASTS, text).notes == ("Cast:y: the Cast in front of it rounds FLOAT to FLOAT16",)


@pytest.mark.parametrize("wide", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.INT16])
@pytest.mark.parametrize("narrow", [ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.BOOL])
def test_a_type_that_holds_another_gives_every_value_back(wide: ir.DataType, narrow: ir.DataType) -> None:
    low, high = (0, 1) if narrow == ir.DataType.BOOL else (narrow.min, narrow.max)
    every = np.arange(int(low), int(high) + 1).astype(narrow.numpy())
    survived = np.array_equal(every.astype(wide.numpy()).astype(narrow.numpy()), every)
    assert holds(wide, narrow) == survived


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        (ir.DataType.DOUBLE, ir.DataType.INT64, False),
        (ir.DataType.DOUBLE, ir.DataType.INT32, True),
        (ir.DataType.FLOAT, ir.DataType.INT32, False),
        (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, False),
        (ir.DataType.UINT64, ir.DataType.INT8, False),
        (ir.DataType.INT64, ir.DataType.FLOAT, False),
        (ir.DataType.BOOL, ir.DataType.UINT8, False),
    ],
)
def test_holds_at_the_limits(wide: ir.DataType, narrow: ir.DataType, expected: bool) -> None:
    assert holds(wide, narrow) is expected
