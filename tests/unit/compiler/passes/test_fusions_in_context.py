"""What all fusions have in common: subgraphs, names taken already, weights in files."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from fusion_helpers import assert_close, model_of, run

from compiler.passes.fuse_conv_affine import FUSE_CONV_AFFINE

HEAD = "(float[1,3,8,8] x, float[4,3,3,3] c_w, float[4,1,1] c_k) => (float[1,4,6,6] y)"
BODY = HEAD + "{ h = Conv(x, c_w)  y = Mul(h, c_k) }"


def test_a_branch_fuses_with_weights_of_the_outer_graph():
    text = """(float[1,3,8,8] x, bool b, float[4,3,3,3] c_w, float[4,1,1] c_k) => (float[1,4,6,6] y)
        { y = If(b) <then_branch = yes () => (float[1,4,6,6] t) { h = Conv(x, c_w)  t = Mul(h, c_k) },
                     else_branch = no () => (float[1,4,6,6] e) { e = Conv(x, c_w) }> }"""
    model = model_of(text)
    wanted = run(model)
    assert FUSE_CONV_AFFINE(model).modified
    branch = model.graph[0].attributes["then_branch"].as_graph()
    assert [(node.op_type, node.outputs[0].name) for node in branch] == [("Conv", "t")]
    assert_close(wanted, run(model))


def test_a_name_that_is_taken_is_not_overwritten():
    head = HEAD.replace("c_k)", "c_k, float[4,1,1] c_o)")
    model = model_of(head + "{ h = Conv(x, c_w)  m = Mul(h, c_k)  y = Max(m, c_o) }")
    taken = model.graph.initializers["c_o"]
    taken.name = f"{model.graph[0].name}.weight"
    assert FUSE_CONV_AFFINE(model).modified
    assert model.graph.initializers[taken.name] is taken


def test_an_optional_default_of_a_graph_input_is_no_constant():
    model = model_of(BODY)
    model.graph.inputs.append(model.graph.initializers["c_w"])
    result = FUSE_CONV_AFFINE(model)
    assert not result.modified
    assert any("'c_w'" in note for note in result.notes)


def test_weights_in_a_file_are_read_only_for_what_is_fused(tmp_path):
    head = HEAD.replace("c_k)", "c_k, float[1,4,6,6] c_far)")
    model = model_of(head + "{ h = Conv(x, c_w)  m = Mul(h, c_k)  y = Max(m, c_far) }")
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    (tmp_path / "weights.bin").chmod(0o400)
    loaded = ir.load(tmp_path / "model.onnx")
    before = (tmp_path / "weights.bin").read_bytes()
    assert FUSE_CONV_AFFINE(loaded).modified
    far = loaded.graph.initializers["c_far"].const_value
    assert isinstance(far, ir.ExternalTensor)
    assert far.raw is None
    assert (tmp_path / "weights.bin").read_bytes() == before
    far.release()


def test_bfloat16_weights_stay_bfloat16():
    model = model_of(BODY.replace("float[", "bfloat16["), opset=22)
    assert FUSE_CONV_AFFINE(model).modified
    assert model.graph[0].inputs[1].const_value.dtype == ir.DataType.BFLOAT16
    assert np.isfinite(model.graph[0].inputs[1].const_value.numpy().astype(np.float64)).all()
