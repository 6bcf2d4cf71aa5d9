from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_close, assert_fuses, assert_leaves, model_of, run

from compiler.passes.fuse_pad import FUSE_PAD
from compiler.passes.values import constant_of

SPATIAL = {"c_p": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)}
PADDED_CONV = "{ h = Pad(x, c_p)  y = Conv(h, c_w) }"
CONV = "(float[N,3,8,8] x, float[4,3,3,3] c_w, int64[8] c_p) => (float[N,4,9,7] y)"
POOL = "(float[N,3,8,8] x, int64[8] c_p) => (float[N,3,H,W] y)"


def pads(*numbers: int) -> dict[str, np.ndarray]:
    return {"c_p": np.array(numbers, np.int64)}


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize(
    "attribute, sums", [("", "1,0,2,1"), ("<pads=[1,1,0,0]>", "2,1,2,1"), ('<auto_pad="VALID">', "1,0,2,1")]
)
def test_zeros_around_the_picture_become_pads_of_the_convolution(attribute, sums, opset):
    text = CONV.replace("9,7", "H,W")
    after = f"(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,H,W] y) {{ y = Conv<pads=[{sums}]>(x, c_w) }}"
    assert_fuses(FUSE_PAD, text + PADDED_CONV.replace("Conv", f"Conv{attribute}"), after, opset=opset, values=SPATIAL)


def test_axes_and_an_explicit_zero_are_understood():
    before = """(float[N,3,8,8] x, float[4,3,3,3] c_w, int64[4] c_p, float c_z, int64[2] c_a) => (float[N,4,9,7] y)
        { h = Pad(x, c_p, c_z, c_a)  y = Conv(h, c_w) }"""
    after = "(float[N,3,8,8] x, float[4,3,3,3] c_w) => (float[N,4,9,7] y) { y = Conv<pads=[1,0,2,1]>(x, c_w) }"
    values = pads(1, 0, 2, 1) | {"c_z": np.array(0, np.float32), "c_a": np.array([-2, 3], np.int64)}
    assert_fuses(FUSE_PAD, before, after, values=values)


@pytest.mark.parametrize("own", ["", ", count_include_pad=1, pads=[0,1,0,0]"])
def test_zeros_before_an_average_pool_are_counted_by_it(own):
    sums = "1,1,2,1" if own else "1,0,2,1"
    before = POOL + f"{{ h = Pad(x, c_p)  y = AveragePool<kernel_shape=[3,3]{own}>(h) }}"
    after = f"""(float[N,3,8,8] x) => (float[N,3,H,W] y)
        {{ y = AveragePool<kernel_shape=[3,3], count_include_pad=1, pads=[{sums}]>(x) }}"""
    assert_fuses(FUSE_PAD, before, after, values=SPATIAL)


def test_zeros_before_a_max_pool_vanish_after_relu():
    before = POOL + "{ r = Relu(x)  h = Pad(r, c_p)  y = MaxPool<kernel_shape=[3,3]>(h) }"
    after = """(float[N,3,8,8] x) => (float[N,3,H,W] y)
        { r = Relu(x)  y = MaxPool<kernel_shape=[3,3], pads=[1,0,2,1]>(r) }"""
    assert_fuses(FUSE_PAD, before, after, values=SPATIAL)


def test_minus_infinity_before_a_max_pool_vanishes():
    before = POOL.replace("c_p)", "c_p, float c_z)") + "{ h = Pad(x, c_p, c_z)  y = MaxPool<kernel_shape=[3,3]>(h) }"
    after = "(float[N,3,8,8] x) => (float[N,3,H,W] y) { y = MaxPool<kernel_shape=[3,3], pads=[1,0,2,1]>(x) }"
    assert_fuses(FUSE_PAD, before, after, values=SPATIAL | {"c_z": np.array(-np.inf, np.float32)})


def test_two_pads_become_one_even_on_channels():
    before = "(float[N,3,8,8] x, int64[8] c_p) => (float[N,5,14,10] y) { h = Pad(x, c_p)  y = Pad(h, c_p) }"
    model = model_of(before, values=pads(0, 1, 1, 0, 0, 0, 2, 1))
    wanted = run(model)
    assert FUSE_PAD(model).modified
    assert [node.op_type for node in model.graph] == ["Pad"]
    assert constant_of(model.graph[0].inputs[1]).tolist() == [0, 2, 2, 0, 0, 0, 4, 2]
    assert_close(wanted, run(model))
    assert not FUSE_PAD(model).modified


@pytest.mark.parametrize(
    "text, values, reason",
    [
        (CONV + PADDED_CONV.replace("Pad(", 'Pad<mode="reflect">('), SPATIAL, "repeats its input"),
        (CONV.replace("[4,3", "[4,4") + PADDED_CONV, pads(0, 1, 1, 0, 0, 0, 2, 1), "to the channels"),
        (CONV.replace("9,7", "7,7") + PADDED_CONV, pads(0, 0, -1, 0, 0, 0, 2, 1), "takes away"),
        (CONV.replace("c_p", "p") + PADDED_CONV.replace("c_p", "p"), {}, "not constant"),
        (CONV.replace("9,7", "H,W") + PADDED_CONV.replace("Conv", 'Conv<auto_pad="SAME_UPPER">'), SPATIAL, "auto_pad"),
        (
            CONV.replace("c_p)", "c_p, float c_z)") + PADDED_CONV.replace("c_p", "c_p, c_z"),
            SPATIAL | {"c_z": np.array(1, np.float32)},
            "adds 1, not 0",
        ),
        (
            POOL + "{ h = Pad(x, c_p)  y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h) }",
            SPATIAL,
            "does not count its own pads",
        ),
        (POOL + "{ h = Pad(x, c_p)  y = AveragePool<kernel_shape=[3,3], ceil_mode=1>(h) }", SPATIAL, "ceil mode"),
        (POOL + "{ h = Pad(x, c_p)  y = AveragePool<kernel_shape=[2,2]>(h) }", SPATIAL, "not smaller than the window"),
        (POOL + "{ h = Pad(x, c_p)  y = MaxPool<kernel_shape=[3,3]>(h) }", SPATIAL, "may be below it"),
        (
            POOL + "{ r = Relu(x)  h = Pad(r, c_p)  y = MaxPool<kernel_shape=[3,3], dilations=[2,2]>(h) }",
            SPATIAL,
            "dilated",
        ),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, values, reason):
    assert_leaves(FUSE_PAD, text, reason, values=values)


def test_pads_with_different_numbers_stay_two():
    text = """(float[N,3,8,8] x, int64[8] c_p, float c_z) => (float[N,3,14,10] y)
        { h = Pad(x, c_p)  y = Pad(h, c_p, c_z) }"""
    assert_leaves(FUSE_PAD, text, "different numbers", values=SPATIAL | {"c_z": np.array(1, np.float32)})
