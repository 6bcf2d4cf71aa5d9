"""Models in half precision: raised to float32, quantized there, with inputs and outputs as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quant_models import scheme_of

from compiler.compress.quant import calibrate, can_balance, measure_sensitivity, quantize
from compiler.compress.quant.widen import widen
from compiler.model.graph import check_model
from compiler.model.numerics import Array, compare
from compiler.model.reference import Unoptimized

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT

PLAIN = """(float16[N,3,6,6] x) => (float16[N,4] y)
    { c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g)
      y = Gemm<transB=1>(f, v) }"""
MIXED = """(float16[N,3,6,6] x, float[N,8] z) => (float16[N,4] y, float[N,8] s, float16[N,8] r)
    { c = Conv<pads=[1,1,1,1]>(x, w, b) g = GlobalAveragePool(c) f = Flatten(g) h = Cast<to=1>(f) s = Add(h, z)
      r = Cast<to=10>(s) y = Gemm<transB=1>(r, v) }"""
CONSTANT = """(float16[N,3,6,6] x) => (float16[N,4] y) <int64[1] one = {1}>
    { c = Conv<pads=[1,1,1,1]>(x, w, b) k = ConstantOfShape<value = float16[1] {2}>(one) m = Mul(c, k)
      g = GlobalAveragePool(m) f = Flatten(g) y = Gemm<transB=1>(f, v) }"""
PASSED = """(float16[N,3,6,6] x) => (float16[N,3,6,6] x, float16[N,4] y)
    { c = Conv<pads=[1,1,1,1]>(x, w, b) g = GlobalAveragePool(c) f = Flatten(g) y = Gemm<transB=1>(f, v) }"""
BRANCHES = """(float16[N,3,6,6] x, bool up) => (float16[N,4] y)
    { c = Conv<pads=[1,1,1,1]>(x, w, b)
      p = If(up) <then_branch = t () => (float16[N,8,6,6] p1) { p1 = Add(c, c) },
                  else_branch = e () => (float16[N,8,6,6] p2) { p2 = Abs(c) }>
      g = GlobalAveragePool(p) f = Flatten(g) y = Gemm<transB=1>(f, v) }"""
BODIES = {"plain": PLAIN, "mixed": MIXED, "constant": CONSTANT, "an input that is an output": PASSED, "if": BRANCHES}


def half_model(body: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 18]> agraph {body}')
    rng = np.random.default_rng(7)
    for name, shape in {"w": (8, 3, 3, 3), "b": (8,), "v": (4, 8)}.items():
        tensor = ir.tensor((rng.normal(size=shape) / 4).astype(np.float16), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(HALF), const_value=tensor)
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name and read is not value:
                    node.replace_input_with(index, value)
    for index, node in enumerate(model.graph.all_nodes()):
        node.name = node.name or f"node{index}"
        if node.op_type == "ConstantOfShape":  # ONNX's text has no numbers in half precision
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array([2.0], np.float16)))
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True))


def batches_of(model: ir.Model, *, count: int = 4, seed: int = 3) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    kinds = {ir.DataType.BOOL: lambda shape: np.ones(shape, bool)}
    return [
        {
            str(value.name): kinds.get(
                value.dtype, lambda shape, value=value: rng.normal(size=shape).astype(value.dtype.numpy())
            )([dim if isinstance(dim, int) else 8 for dim in value.shape or ()])
            for value in model.graph.inputs
        }
        for _ in range(count)
    ]


def interface(model: ir.Model) -> list[tuple[object, ...]]:
    return [(value.name, value.dtype, str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]


@pytest.mark.parametrize("name", BODIES)
def test_the_raised_model_computes_the_same_with_the_same_inputs_and_outputs(name: str) -> None:
    model = half_model(BODIES[name])
    found = widen(model)
    check_model(found)
    assert interface(found) == interface(model)
    inside = [value for node in found.graph.all_nodes() if node.op_type != "Cast" for value in node.outputs]
    assert all(value.dtype == FLOAT for value in inside)
    for batch in batches_of(model):
        want, got = Unoptimized(model).run(batch), Unoptimized(found).run(batch)
        assert all(compare(want[key], got[key]).sqnr_db > 50 for key in want)
        assert all(want[key].dtype == got[key].dtype for key in want)


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
@pytest.mark.parametrize("name", BODIES)
def test_it_is_quantized_and_what_is_not_is_in_the_precision_that_was_asked_for(name: str, compute: str) -> None:
    model = half_model(BODIES[name])
    scheme, batches = replace(scheme_of(), compute=compute), batches_of(model, count=5)
    seen = calibrate(model, batches, scheme)
    found = quantize(model, batches, scheme, calibrated=seen)
    check_model(found.model)
    assert interface(found.model) == interface(model)
    assert {layer.op for layer in found.plan.layers if layer.precision == "int8"} >= {"Conv", "Gemm"}
    products = [node.outputs[0].dtype for node in found.model.graph if node.op_type in ("Conv", "Gemm")]
    assert products == [HALF if compute == "fp16" else FLOAT] * 2
    want, got = (Unoptimized(one).run(batches_of(model, seed=9)[0])["y"] for one in (model, found.model))
    assert compare(want, got).sqnr_db > 25


def test_its_layers_are_ranked_and_balanced_too() -> None:
    model = half_model(PLAIN)
    batches = batches_of(model)
    plan = quantize(model, batches, scheme_of()).plan
    assert [error.op for error in measure_sensitivity(model, plan, batches)] in (["Conv", "Gemm"], ["Gemm", "Conv"])
    assert can_balance(model, "activations")


def test_a_float32_model_with_half_precision_between_no_products_is_left_alone() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> agraph (float[N,4] x) => (float[N,4] y)
    { h = Cast<to=10>(x) a = Add(h, h) y = Cast<to=1>(a) }"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(ir.from_onnx_text(text))))
    assert widen(model) is model
