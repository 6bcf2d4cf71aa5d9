"""What TensorRT's parser does not take is written otherwise: equal results in the reference, and an engine."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tensorrt_cases import Build, gpu_profile, text_model

from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.run import run_passes
from compiler.target.capability import find_unsupported
from targets.nvidia_tensorrt import TARGET
from targets.nvidia_tensorrt.refusals import refuse_unbuildable

POOL = "g (float[1,2,%s] x) => (float[1,2,%s] y) { y = %s(x) }"
LSTM = "(float16[3,2,4] x, int32[2] l, float16[1,8,4] w, float16[1,8,2] r, float16[1,16] b) => (float16[3,1,2,2] y)"
MODELS = {
    "softmax of a vector": "g (float[5] x) => (float[5] y) { y = Softmax(x) }",
    "log-softmax of a vector": "g (float[5] x) => (float[5] y) { y = LogSoftmax<axis=0>(x) }",
    "hardmax of a vector": "g (float[5] x) => (float[5] y) { y = Hardmax(x) }",
    "argmax of a vector": "g (float[5] x) => (int64[1] y) { y = ArgMax(x) }",
    "argmin of a vector, a scalar": "g (float[5] x) => (int64 y) { y = ArgMin<keepdims=0, axis=-1>(x) }",
    "vector by matrices": "g (float[3] x, float[2,3,4] z) => (float[2,4] y) { y = MatMul(x, z) }",
    "vector by more matrices": "g (float[3] x, float[5,2,3,4] z) => (float[5,2,4] y) { y = MatMul(x, z) }",
    "max pool, its last window is empty": POOL
    % ("2,2", "1,1", "MaxPool<kernel_shape=[1,1], strides=[2,2], ceil_mode=1>"),
    "max pool, rounded up on one axis": POOL
    % ("2,5", "1,3", "MaxPool<kernel_shape=[1,2], strides=[2,2], ceil_mode=1>"),
    "mean pool, its last window starts on a pad": POOL
    % ("2,2", "1,1", "AveragePool<kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1], ceil_mode=1>"),
    "attention, a mask and a causal one": """g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v, float[4,4] m)
        => (float[1,2,4,8] y) { y = Attention<is_causal=1>(q, k, v, m) }""",
    "attention, values of another size": """g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,6] v)
        => (float[1,2,4,6] y) { y = Attention(q, k, v) }""",
    "half-precision LSTM with lengths": f"g {LSTM} {{ y = LSTM<hidden_size=2>(x, w, r, b, l) }}",
}


def made(text: str) -> tuple[ir.Model, ir.Model]:
    """The model, and what the target's own passes make of it."""
    source, model = text_model(text, opset=23), text_model(text, opset=23)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"n{number}"
    infer_shapes(model)
    assert any(record.modified for record in run_passes(model, TARGET.passes(gpu_profile())))
    infer_shapes(model)
    check_model(model)
    return source, model


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("name", MODELS)
def test_what_the_parser_fails_at_is_built_and_equal(name: str, build: Build) -> None:
    import onnxruntime

    source, model = made(MODELS[name])
    random = np.random.default_rng(1)
    inputs = {
        str(value.name): random.standard_normal(tuple(value.shape)).astype(value.dtype.numpy())
        if value.dtype != ir.DataType.INT32
        else np.array([3, 2], np.int32)
        for value in source.graph.inputs
    }
    results = []
    for form in (source, model):
        session = onnxruntime.InferenceSession(ir.to_proto(form).SerializeToString())
        results.append({"y": session.run(["y"], inputs)[0]})
    (stats,) = compare_all(*results).values()
    assert TOLERANCES["fp16" if "half" in name else "fp32"].accepts(stats), f"{name}: {stats}"
    assert build(model).files


REFUSED = {
    "LSTM": "g (float[3,2,4] x, float[1,8,4] w, float[1,8,2] r) => (y) { y = LSTM<hidden_size=2, layout=1>(x, w, r) }",
    "GRU": "g (float[3,2,4] x, float[1,6,4] w, float[1,6,2] r) => (y) { y = GRU<hidden_size=2, layout=1>(x, w, r) }",
    "Attention": "g (float[1,2,4,8] q) => (float[1,2,4,8] y) { y = Attention<softcap=2.0>(q, q, q) }",
    "Clip": "g (int8[4] x, int8 a) => (int8[4] y) { y = Clip(x, a) }",
    "LayerNormalization": "g (float[2,4] x, float[4] s) => (float[2,4] y, m) { y, m = LayerNormalization(x, s) }",
    "LpPool": "g (float[1,1,4] x) => (y) { y = LpPool<kernel_shape=[2], p=3>(x) }",
    "MaxPool": "g (float[1,1,4] x) => (y, i) { y, i = MaxPool<kernel_shape=[2]>(x) }",
    "Range": "g (float16 a, float16 b, float16 c) => (float16[n] y) { y = Range(a, b, c) }",
    "ReduceSum": "g (float[2,4] x, int64[1] a) => (y) { y = ReduceSum(x, a) }",
    "ScatterElements": """g (float[4] x, int64[2] i, float[2] u) => (float[4] y)
        { y = ScatterElements<reduction="max">(x, i, u) }""",
    "ScatterND": """g (float[4] x, int64[2,1] i, float[2] u) => (float[4] y)
        { y = ScatterND<reduction="add">(x, i, u) }""",
    "Squeeze": "g (float[1,4] x, int64[1] a) => (float[4] y) { y = Squeeze(x, a) }",
}


@pytest.mark.parametrize("operator", REFUSED)
def test_what_has_no_other_form_is_refused_before_the_parser_is_asked(operator: str) -> None:
    model = text_model(REFUSED[operator], opset=23)
    infer_shapes(model)
    (refusal, *_) = find_unsupported(model, TARGET.capability(gpu_profile()))
    assert refusal.op == operator


def test_more_elements_than_the_builder_keeps_are_refused_by_their_number() -> None:
    text = """g (float[4,5000] x) => (float[4,4000] y, int64[4,4000] i) <int64[1] k = {4000}>
        { [best] y, i = TopK(x, k) }"""
    (refusal,) = refuse_unbuildable(text_model(text))
    assert str(refusal) == "TopK 'best': it keeps 4000 elements; TensorRT keeps at most 3840"
