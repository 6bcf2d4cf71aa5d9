"""Opsets 7 to 10 are raised to 11 with the same results; what cannot be raised is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pass_cases import with_weight

from compiler.compress.quant.apply import at_opset
from compiler.errors import UnsupportedModel
from compiler.model.graph import check_model
from compiler.passes.probe import make_probe
from compiler.passes.raise_opset import OPSET, RAISE_OPSET

STATISTICS = "float[2,3,4,4] x, float[3] s, float[3] b, float[3] m, float[3] v"

CASES = {
    "BatchNormalization<spatial=1>(x, s, b, m, v)": (STATISTICS, 8),
    "BatchNormalization(x, s, b, m, v)": (STATISTICS, 7),
    'Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(x)': ("float[1,3,4,4] x", 7),
    'Upsample<mode="linear", scales=[1.0,1.0,2.0,3.0]>(x)': ("float[1,3,4,4] x", 8),
    'Upsample<mode="linear">(x, c)': ("float[1,3,4,4] x", 9),
    'Resize<mode="linear">(x, c)': ("float[1,3,5,4] x", 10),
    'Resize<mode="nearest">(x, c)': ("float[1,3,4,7] x", 10),
    "Slice<axes=[0,1], starts=[1,-3], ends=[3,100]>(x)": ("float[4,6] x", 9),
    "Slice<starts=[1,2], ends=[3,5]>(x)": ("float[4,6] x", 7),
    "Clip<min=-0.5, max=0.75>(x)": ("float[4,6] x", 10),
    "Clip<max=0.5>(x)": ("float[4,6] x", 7),
    "Clip<min=0.5>(x)": ("float[4,6] x", 8),
    "Pad<pads=[1,0,2,3], value=0.5>(x)": ("float[4,6] x", 10),
    'Pad<pads=[1,1,1,1], mode="reflect">(x)': ("float[4,6] x", 8),
    "Softmax<axis=1>(x)": ("float[2,3,4] x", 10),
    "LogSoftmax(x)": ("float[2,3,4] x", 7),
    "TopK<k=2>(x)": ("float[4,6] x", 9),
    "TopK<k=1, axis=0>(x)": ("float[4,6] x", 7),
    "Dropout<ratio=0.5>(x)": ("float[4,6] x", 7),
    "MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)": ("float[1,3,5,4] x", 7),
    "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)": ("float[1,3,4,4] x", 7),
    "Gemm(x, w, b)": ("float[4,6] x, float[6,3] w, float[3] b", 7),
    "PRelu(x, s)": ("float[1,3,4,4] x, float[3,1,1] s", 7),
    "LSTM<hidden_size=2>(x, w, r)": ("float[2,1,3] x, float[1,8,3] w, float[1,8,2] r", 7),
    "ArgMax<axis=1, keepdims=0>(x)": ("float[2,3] x", 8),
    "Flatten<axis=2>(x)": ("float[2,3,4] x", 8),
    "Squeeze<axes=[1]>(x)": ("float[2,1,4] x", 8),
    "Unsqueeze<axes=[0,2]>(x)": ("float[2,4] x", 8),
    "ReduceMean<axes=[1], keepdims=0>(x)": ("float[2,4,3] x", 8),
    "InstanceNormalization(x, s, b)": ("float[1,3,4,4] x, float[3] s, float[3] b", 7),
    "DepthToSpace<blocksize=2>(x)": ("float[1,4,2,2] x", 7),
    "ConvTranspose(x, w)": ("float[1,2,3,3] x, float[2,2,3,3] w", 8),
    "Scatter(x, i, u)": ("float[2,4] x, int64[1,4] i, float[1,4] u", 9),
    "Concat<axis=0>(x, x)": ("float[2,3] x", 7),
    "Cast<to=7>(x)": ("float[4] x", 8),
}


def old(body: str, inputs: str, opset: int) -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 4, opset_import: ["": {opset}]> g ({inputs}) => (y)
        <float[4] c = {{1.0, 1.0, 2.0, 2.0}}> {{ [it] y{", z" if body.startswith("TopK") else ""} = {body} }}"""
    )


@pytest.mark.parametrize("body", CASES)
def test_an_old_operator_gives_what_it_gave(body: str) -> None:
    inputs, opset = CASES[body]
    model = old(body, inputs, opset)
    probe = make_probe(model)
    assert probe.expected is not None, probe.why
    result = RAISE_OPSET(model)
    assert result.modified and f"opset {opset} became {OPSET}" in result.notes
    assert model.graph.opset_imports[""] == OPSET
    check_model(model)
    assert probe.worst(model).sqnr_db > 100
    assert all(node.name for node in model.graph)
    assert not RAISE_OPSET(model).modified


def test_branches_are_raised_and_weights_are_shared() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 4, opset_import: ["": 9]> g (float[2,64] x, bool c, float[64,64] w) => (float[2,64] y)
        { m = MatMul(x, w) y = If(c) <then_branch = t () => (float[2,64] p) { p = Clip<min=0.0>(m) },
                                      else_branch = e () => (float[2,64] q) { q = Neg(x) }> }"""
    )
    tensor = with_weight(model, "w", np.eye(64, dtype=np.float32)).graph.initializers["w"].const_value
    probe = make_probe(model)
    assert RAISE_OPSET(model).modified
    check_model(model)
    assert probe.worst(model).worst_abs == 0.0
    assert model.graph.initializers["w"].const_value is tensor


def test_what_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter is ONNX's; a fault of it is imitated by another alpha in what it makes."""
    import compiler.passes.raise_opset as module

    real = module.raised

    def faulty(model: ir.Model, opset: int, *, reason: str) -> ir.Model:
        newer = real(model, opset, reason=reason)
        newer.graph[0].attributes["alpha"] = ir.AttrFloat32("alpha", 0.7)
        return newer

    monkeypatch.setattr(module, "raised", faulty)
    with pytest.raises(UnsupportedModel, match="computes something else"):
        RAISE_OPSET(old("LeakyRelu<alpha=0.1>(x)", "float[4] x", 9))


def test_what_the_converter_does_not_read_is_refused_with_both_opsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ConvertError is no RuntimeError, and ended the build as a fault of ours."""
    version_converter = onnx.version_converter

    def refuse(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raise version_converter.ConvertError("Input w is undefined!")

    monkeypatch.setattr(version_converter, "convert_version", refuse)
    with pytest.raises(UnsupportedModel, match=r"opset 9 cannot be raised to 11.*w is undefined"):
        RAISE_OPSET(old("LeakyRelu<alpha=0.1>(x)", "float[4] x", 9))


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("shape", ["2,3,4", "2,3", "2,3,4,1"])
def test_what_the_converter_spells_with_sizes_is_folded(operator: str, axis: int, shape: str) -> None:
    """From opset 11 to 13, as quantization does it: no Shape is left of a Softmax over several axes."""
    if axis >= shape.count(",") + 1:
        axis = 1
    model = ir.from_onnx_text(
        f"""<ir_version: 7, opset_import: ["": 11]> g (float[{shape}] x) => (float[{shape}] y)
        {{ [a] r = Relu(x) [s] m = {operator}<axis={axis}>(r) [b] y = Sigmoid(m) }}"""
    )
    probe = make_probe(model)
    raised = at_opset(model, 13)
    check_model(raised)
    assert "Shape" not in [node.op_type for node in raised.graph]
    assert all(node.name for node in raised.graph)
    assert probe.worst(raised).sqnr_db > 100
