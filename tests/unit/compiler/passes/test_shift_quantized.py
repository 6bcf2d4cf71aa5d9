"""uint8 between QuantizeLinear and DequantizeLinear as int8: not one bit of a result changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.model.graph import check_model
from compiler.model.reference import Unoptimized
from compiler.passes.shift_quantized import SHIFT_QUANTIZED

HEAD = (
    "<float s = {0.04}, float[3] per = {0.01, 0.02, 0.03}, uint8 z = {117}, uint8 m = {128}, "
    "uint8[3] many = {3, 128, 200}, uint8[3,4,1,1] w = {1,2,3,4,100,128,7,255,9,0,11,12}, "
    "int64[2] flat = {0, -1}, int64[1] one = {1}, int64[1] two = {2}>"
)
BODIES = {
    "a value": "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
    "without a zero point": "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
    "two readers": "q = QuantizeLinear(x, s, m) a = DequantizeLinear(q, s, m) b = DequantizeLinear(q, s, m) "
    "y = Add(a, b)",
    "weights of channels": "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
    "v = DequantizeLinear<axis = 0>(w, per, many) y = Conv(d, v)",
    "moved": "q = QuantizeLinear(x, s, z) p = MaxPool<kernel_shape = [2, 2], pads = [1, 1, 0, 0]>(q) "
    "t = Transpose<perm = [0, 2, 3, 1]>(p) r = Reshape(t, flat) y = DequantizeLinear(r, s, z)",
    "joined": "q = QuantizeLinear(x, s, z) r = QuantizeLinear(x, s, m) j = Concat<axis = 1>(q, r) "
    "c = Slice(j, one, two, one) y = DequantizeLinear(c, s, m)",
}
KEPT = {
    "an output": ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", ", uint8[N,4,5,5] q", "input or output"),
    "read otherwise": ("q = QuantizeLinear(x, s, z) y = Cast<to = 1>(q)", "", "Cast reads it"),
    "computed zero point": (
        "c = Cast<to = 2>(k) q = QuantizeLinear(x, s, c) y = DequantizeLinear(q, s, c)",
        "",
        "QuantizeLinear makes it",
    ),
}


def model_of(body: str, more: str = "") -> ir.Model:
    shape = "[N,R]" if "Reshape" in body else "[N,C,H,W]"
    signature = f"(float[N,4,5,5] x, float k) => (float{shape} y{more})"
    text = f'<ir_version: 10, opset_import: ["": 18]> g {signature} {HEAD} {{ {body} }}'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(ir.from_onnx_text(text)), strict_mode=True))
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            model.graph.initializers.pop(name)
    return model


def inputs() -> dict[str, np.ndarray]:
    x = np.random.default_rng(2).normal(scale=4, size=(3, 4, 5, 5)).astype(np.float32)
    return {"x": x, "k": np.float32(100)}


@pytest.mark.parametrize("name", BODIES)
def test_results_stay_to_the_bit_and_no_value_is_uint8(name: str) -> None:
    model = model_of(BODIES[name])
    want = Unoptimized(model).run(inputs())["y"]
    assert SHIFT_QUANTIZED(model).modified
    check_model(model)
    values = [value for node in model.graph for value in (*node.outputs, *node.inputs) if value is not None]
    assert ir.DataType.UINT8 not in {value.dtype for value in values}
    assert np.array_equal(Unoptimized(model).run(inputs())["y"], want)
    assert not SHIFT_QUANTIZED(model).modified


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_shifted_stays_and_says_why(name: str) -> None:
    body, more, why = KEPT[name]
    model = model_of(body, more)
    before = ir.to_proto(model).SerializeToString()
    result = SHIFT_QUANTIZED(model)
    assert not result.modified and why in result.notes[0]
    assert ir.to_proto(model).SerializeToString() == before


def test_a_constant_that_another_node_reads_is_left_to_it() -> None:
    model = model_of("q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) f = Cast<to = 1>(z) y = Add(a, f)")
    want = Unoptimized(model).run(inputs())["y"]
    assert SHIFT_QUANTIZED(model).modified
    assert model.graph.initializers["z"].dtype == ir.DataType.UINT8
    assert np.array_equal(Unoptimized(model).run(inputs())["y"], want)
