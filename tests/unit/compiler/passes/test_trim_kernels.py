from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from fusion_helpers import model_of, run

from compiler.model.graph import check_model
from compiler.passes.trim_kernels import TRIM_KERNELS


def trimmed(body: str) -> tuple[list[int], list[int]]:
    """Sizes of the filter and pads after the pass, which must keep the outputs and be done after one run."""
    model = model_of(body)
    wanted = run(model)
    result = TRIM_KERNELS(model)
    check_model(model)
    for name, found in run(model).items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-5, atol=1e-5)
    assert not TRIM_KERNELS(model).modified
    (node,) = (node for node in model.graph if node.op_type == "Conv")
    changed = node.inputs[1].name != "c_w"
    assert result.modified == changed
    return list(node.inputs[1].shape)[2:], list(node.attributes.get_ints("pads", (0, 0, 0, 0)))


def test_a_filter_on_one_pixel_becomes_a_product_and_its_pads_go() -> None:
    body = "(float[N,3,1,1] x, float[4,3,3,3] c_w, float[4] c_b) => (float[N,4,1,1] y)"
    for more in ("", "kernel_shape=[3,3], "):
        assert trimmed(f"{body} {{ y = Conv<{more}pads=[1,1,1,1]>(x, c_w, c_b) }}") == ([1, 1], [0, 0, 0, 0])


def test_each_axis_and_each_end_is_trimmed_by_itself() -> None:
    body = "(float[N,3,2,9] x, float[4,3,7,3] c_w) => (float[N,4,2,9] y) { y = Conv<pads=[3,1,3,1]>(x, c_w) }"
    assert trimmed(body) == ([3, 3], [1, 1, 1, 1])
    body = "(float[N,4,1,5] x, float[4,1,4,3] c_w) => (float[N,4,1,5] y) { y = Conv<pads=[3,1,0,1], group=4>(x, c_w) }"
    assert trimmed(body) == ([1, 3], [0, 1, 0, 1])


@pytest.mark.parametrize(
    "body",
    [
        "(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, c_w) }",
        "(float[N,3,2,2] x, float[4,3,3,3] c_w) => (float[N,4,2,2] y) { y = Conv<pads=[1,1,1,1]>(x, c_w) }",
        "(float[N,3,H,W] x, float[4,3,3,3] c_w) => (float[N,4,H,W] y) { y = Conv<pads=[1,1,1,1]>(x, c_w) }",
        '(float[N,3,1,1] x, float[4,3,3,3] c_w) => (float[N,4,1,1] y) { y = Conv<auto_pad="SAME_UPPER">(x, c_w) }',
        "(float[N,3,1,1] x, float[4,3,2,1] c_w) => (float[N,4,1,1] y) "
        "{ y = Conv<pads=[1,0,1,0], dilations=[2,1]>(x, c_w) }",
    ],
    ids=["every tap counts", "two pixels", "sizes unknown", "auto_pad", "no tap counts"],
)
def test_what_cannot_or_need_not_be_trimmed_stays(body: str) -> None:
    before = model_of(body)
    weights = list(before.graph.initializers["c_w"].shape)[2:]
    assert trimmed(body)[0] == weights


def test_a_filter_that_is_no_constant_stays() -> None:
    body = "(float[N,3,1,1] x, float[4,3,3,3] w) => (float[N,4,1,1] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    assert not TRIM_KERNELS(model_of(body)).modified


def test_a_shared_filter_is_trimmed_only_for_the_layer_that_does_not_need_it() -> None:
    body = """(float[N,3,1,1] x, float[N,3,5,5] z, float[4,3,3,3] c_w) => (float[N,4,1,1] y, float[N,4,5,5] v) {
        y = Conv<pads=[1,1,1,1]>(x, c_w) v = Conv<pads=[1,1,1,1]>(z, c_w) }"""
    model = model_of(body)
    assert TRIM_KERNELS(model).modified
    first, second = (node for node in model.graph if node.op_type == "Conv")
    assert list(first.inputs[1].shape) == [4, 3, 1, 1] and second.inputs[1].name == "c_w"


@pytest.mark.parametrize(
    ("size", "side", "stride", "dilation"), [*product((1, 2, 3, 5), (1, 3, 4), (1, 2, 3), (1, 2))], ids=str
)
def test_any_layer_gives_what_it_gave(size: int, side: int, stride: int, dilation: int) -> None:
    pads = [dilation * (side - 1), dilation * (side - 1) // 2]
    length = (size + sum(pads) - dilation * (side - 1) - 1) // stride + 1
    given = f"pads=[{pads[0]}, 0, {pads[1]}, 0], strides=[{stride}, 1], dilations=[{dilation}, 1]"
    body = (
        f"(float[N,2,{size},3] x, float[2,2,{side},1] c_w) => (float[N,2,{length},3] y) {{ y = Conv<{given}>(x, c_w) }}"
    )
    sides, found = trimmed(body)
    assert sides[0] <= side and min(found) >= 0


@pytest.mark.parametrize(
    ("size", "side", "dilation", "before", "after", "stride"),
    [
        case
        for case in product((1, 2, 3, 5), (2, 3, 5), (1, 2, 3), (0, 1, 2, 4), (0, 1, 3), (1, 2))
        if case[0] + case[3] + case[4] >= case[2] * (case[1] - 1) + 1
    ],
)
def test_pads_stay_what_a_convolution_can_have(size, side, dilation, before, after, stride) -> None:
    """A tap on padding may be worth more steps than there are pads; every size, dilation, stride and pad."""
    outputs = (size + before + after - dilation * (side - 1) - 1) // stride + 1
    body = f"(float[N,2,{size},3] x, float[3,2,{side},1] c_w) => (float[N,3,{outputs},3] y)"
    attributes = f"pads=[{before},0,{after},0], dilations=[{dilation},1], strides=[{stride},1]"
    _, pads = trimmed(f"{body} {{ y = Conv<{attributes}>(x, c_w) }}")
    assert min(pads) >= 0
