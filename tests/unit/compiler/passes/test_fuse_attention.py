from __future__ import annotations

import numpy as np
import pytest
from fusion_helpers import assert_fuses, assert_leaves

from compiler.passes.fuse_attention import FUSE_ATTENTION

HEAD = "(float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,4] v, float c_s, float[%s] mask) => (float[2,3,5,4] y)"
PLAIN = "(float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,4] v) => (float[2,3,5,4] y)"
SCALE = {"c_s": np.array(0.25, np.float32)}
TRANSPOSED = "t = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, t)"
END = "w = Softmax<axis=-1>(%s)  y = MatMul(w, v)"


def test_scaled_scores_become_attention():
    before = f"{PLAIN.replace('v)', 'v, float c_s)')} {{ {TRANSPOSED}  a = Mul(s, c_s)  {END % 'a'} }}"
    after = f"{PLAIN} {{ y = Attention<scale=0.25>(q, k, v) }}"
    assert_fuses(FUSE_ATTENTION, before, after, opset=23, values=SCALE)


def test_a_divisor_becomes_its_inverse():
    before = f"{PLAIN.replace('v)', 'v, float c_s)')} {{ {TRANSPOSED}  a = Div(s, c_s)  {END % 'a'} }}"
    after = f"{PLAIN} {{ y = Attention<scale=4.0>(q, k, v) }}"
    assert_fuses(FUSE_ATTENTION, before, after, opset=23, values=SCALE)


def test_unscaled_scores_keep_a_scale_of_one():
    after = f"{PLAIN} {{ y = Attention<scale=1.0>(q, k, v) }}"
    assert_fuses(FUSE_ATTENTION, f"{PLAIN} {{ {TRANSPOSED}  {END % 's'} }}", after, opset=23)


@pytest.mark.parametrize("mask", ["5,7", "2,1,5,7", "1,1,5,7"])
@pytest.mark.parametrize("total", ["Add(a, mask)", "Add(mask, a)"])
def test_a_mask_goes_into_attention(total, mask):
    before = f"{HEAD % mask} {{ {TRANSPOSED}  a = Mul(s, c_s)  b = {total}  {END % 'b'} }}"
    after = f"{HEAD.replace(' float c_s,', '') % mask} {{ y = Attention<scale=0.25>(q, k, v, mask) }}"
    assert_fuses(FUSE_ATTENTION, before, after, opset=23, values=SCALE)


def test_the_other_half_of_a_transposition_of_the_keys_stays():
    head = PLAIN.replace("[2,3,7,8] k", "[2,7,3,8] k")
    before = f"{head} {{ t = Transpose<perm=[0,2,3,1]>(k)  s = MatMul(q, t)  {END % 's'} }}"
    after = f"{head} {{ t = Transpose<perm=[0,2,1,3]>(k)  y = Attention<scale=1.0>(q, t, v) }}"
    assert_fuses(FUSE_ATTENTION, before, after, opset=23)


MASKED = f"{{ {TRANSPOSED}  a = Mul(s, c_s)  b = Add(a, mask)  {END % 'b'} }}"


@pytest.mark.parametrize(
    "text, reason",
    [
        (PLAIN.replace("v)", "v, float[7] c_s)") + f"{{ {TRANSPOSED}  a = Mul(s, c_s)  {END % 'a'} }}", "scale"),
        (PLAIN + f"{{ {TRANSPOSED}  {END.replace('-1', '2') % 's'} }}", "over the keys"),
        (PLAIN.replace("2,3,7,8", "1,3,7,8") + f"{{ {TRANSPOSED}  {END % 's'} }}", "the same batch"),
        (PLAIN.replace("2,3,7,4", "2,1,7,4") + f"{{ {TRANSPOSED}  {END % 's'} }}", "the same heads"),
        (
            "(float[3,5,8] q, float[3,7,8] k, float[3,7,4] v) => (float[3,5,4] y)"
            f"{{ t = Transpose<perm=[0,2,1]>(k)  s = MatMul(q, t)  {END % 's'} }}",
            "rank 4",
        ),
        (HEAD % "1,1,1,7" + MASKED, "not known to fit"),
        (HEAD % "5,1" + MASKED, "not known to fit"),
        (HEAD % "7" + MASKED, "rank 2 to 4"),
        (
            PLAIN.replace("y)", "y, float[2,3,5,7] w)") + f"{{ {TRANSPOSED}  {END % 's'} }}",
            "also a graph output",
        ),
        (PLAIN.replace("7,8] k", "8,7] k") + f"{{ s = MatMul(q, k)  {END % 's'} }}", ""),
    ],
)
def test_a_near_miss_is_left_alone_with_its_reason(text, reason):
    assert_leaves(FUSE_ATTENTION, text, reason, opset=23, values=SCALE if "float c_s" in text else None)


def test_below_opset_23_the_form_stays_with_the_reason():
    assert_leaves(FUSE_ATTENTION, f"{PLAIN} {{ {TRANSPOSED}  {END % 's'} }}", "needs opset 23", opset=22)


@pytest.mark.parametrize("operator", ["Mul", "Div"])
@pytest.mark.parametrize("number", [-0.5, 0.0, -1e-30, np.inf])
def test_a_scale_that_is_not_positive_stays_an_operator(operator, number):
    """ONNX Runtime, the reference, refuses Attention with a scale of 0 or below."""
    if (operator, number) == ("Div", 0.0):
        number = -2.0  # a division by 0 has no outputs to compare
    before = f"{PLAIN.replace('v)', 'v, float c_s)')} {{ {TRANSPOSED}  a = {operator}(s, c_s)  {END % 'a'} }}"
    assert_leaves(FUSE_ATTENTION, before, "positive", opset=23, values={"c_s": np.array(number, np.float32)})
