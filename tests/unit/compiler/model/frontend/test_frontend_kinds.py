"""What an input's numbers are is found from what reads them and from its name, and random ones are drawn so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.evaluate.samples import make_samples
from compiler.model.frontend import describe_inputs, input_kinds
from compiler.model.frontend.infer import infer_shapes
from compiler.model.frontend.kinds import Kind
from compiler.model.reference import Unoptimized

TABLE = "float[50,4] t = {%s}, float[7,4] u = {%s}, int64[1] ax = {1}, int64[2] flat = {0,-1}, int64 one = {1}"
TABLE %= tuple(",".join(["0.5"] * n) for n in (200, 28))


def model(inputs: str, body: str) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[] y) <{TABLE}> {{ {body} }}'
    made = ir.from_onnx_text(text.replace("(float[] y)", "(y)"))
    infer_shapes(made)
    return made


IDS = {
    "directly": "y = Gather(t, ids)",
    "behind a cast": "i = Cast<to=7>(ids) y = Gather(t, i)",
    "behind shapes": "a = Unsqueeze(ids, ax) b = Squeeze(a, ax) c = Reshape(b, flat) d = Cast<to=7>(c) "
    "y = Gather(t, d)",
    "of two tables": "a = Gather(t, ids) b = Gather(u, ids) y = Add(a, b)",
    "of an element": "y = GatherElements(t, ids)",
    "transposed": "a = Transpose(ids) y = Gather(t, a)",
}


@pytest.mark.parametrize("body", IDS)
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_ids_reach_up_to_the_size_of_the_table(body: str, dtype: str) -> None:
    made = model(f"{dtype}[3,4] ids", IDS[body])
    rows = 7 if "two" in body else 50
    kind = input_kinds(made)["ids"]
    assert (kind.kind, kind.low, kind.high) == (Kind.INTEGERS, 0, rows - 1)
    samples = make_samples(describe_inputs(made), count=40, kinds=input_kinds(made))
    ids = np.concatenate([item["ids"] for item in samples.items])
    assert ids.dtype == dtype and ids.min() == 0 and ids.max() == rows - 1
    assert f"ids: integers 0 to {rows - 1} (rows of a table)" in samples.origin
    Unoptimized(made).run(samples.items[0])


@pytest.mark.parametrize(
    ("inputs", "body", "name", "text"),
    [
        (
            "int64[2,6] attention_mask, float[2,6] x",
            "c = Cast<to=1>(attention_mask) y = Mul(x, c)",
            "attention_mask",
            "masks",
        ),
        ("int64[2,6] flags, float[2,6] x", "c = Cast<to=9>(flags) y = Where(c, x, x)", "flags", "masks"),
        ("int64[2,6] keep", "y = Sub(one, keep)", "keep", "masks"),
        ("bool[2,6] m2, float[2,6] x", "y = Where(m2, x, x)", "m2", "booleans"),
        ("uint8[1,3,4,4] image", "y = Cast<to=1>(image)", "image", "integers 0 to 255"),
        ("int8[4] raw", "y = Cast<to=1>(raw)", "raw", "integers -128 to 127"),
        ("int64 sr, int64[4] z", "y = Mul(z, sr)", "sr", "16000"),
        ("float sample_rate, float[4] z", "y = Mul(z, sample_rate)", "sample_rate", "16000"),
        ("int64[2] x_length, int64[2] z", "y = Mul(z, x_length)", "x_length", "integers 1 to 4"),
        ("int64[3,4] numbers", "y = Mul(numbers, numbers)", "numbers", "integers 0 to 100"),
        ("float[3,4] x", "y = Relu(x)", "x", "normal, with zeros and large values"),
        (
            "int32[5] lens, float[9,5,3] x, float[1,8,3] w, float[1,8,2] r, float[1,16] b",
            "y, h = LSTM<hidden_size=2>(x, w, r, b, lens)",
            "lens",
            "integers 1 to 9",
        ),
        ("int64[3] what", "y = OneHot(what, five, pair)", "what", "integers 0 to 4"),
        ("float[4,4] x, int64[1] k", "y, i = TopK(x, k)", "k", "1"),
    ],
)
def test_other_inputs_by_what_reads_them_or_by_name(inputs: str, body: str, name: str, text: str) -> None:
    body = body.replace("five", "five0").replace("pair", "pair0")
    constants = "five0 = Constant<value_int=5>() pair0 = Constant<value_floats=[0.0,1.0]>()"
    made = model(inputs, f"{constants} {body}" if "five0" in body else body)
    kinds = input_kinds(made)
    assert str(kinds[name]).startswith(text)
    samples = make_samples(describe_inputs(made), count=8, kinds=kinds)
    for item in samples.items:
        assert all(item[spec.name].shape == spec.shape for spec in describe_inputs(made))
        Unoptimized(made).run(item)
    assert f"{name}: {kinds[name]}" in samples.origin


def test_masks_are_whole_and_partial_and_never_empty() -> None:
    made = model("int64[2,6] mask, float[2,6] x", "c = Cast<to=1>(mask) y = Mul(x, c)")
    masks = [item["mask"] for item in make_samples(describe_inputs(made), count=8, kinds=input_kinds(made)).items]
    assert masks[0].all() and masks[4].all()
    assert any(not mask.all() for mask in masks)
    assert all((mask.sum(axis=1) >= 1).all() and (np.diff(mask, axis=1) <= 0).all() for mask in masks)


def test_normal_numbers_have_zeros_and_large_values() -> None:
    made = model("float[1000] x", "y = Relu(x)")
    (item,) = make_samples(describe_inputs(made), kinds=input_kinds(made)).items
    assert (item["x"] == 0).any() and np.abs(item["x"]).max() > 5 and item["x"].dtype == np.float32


def test_a_half_image_is_drawn_in_its_type() -> None:
    made = model("float16[3] x, bfloat16[3] z", "y = Relu(x)")
    (item,) = make_samples(describe_inputs(made), kinds=input_kinds(made)).items
    assert [item[name].dtype.name for name in "xz"] == ["float16", "bfloat16"]
