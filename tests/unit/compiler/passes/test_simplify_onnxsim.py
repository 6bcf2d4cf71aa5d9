from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from pass_cases import assert_same, parse, with_weight

from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES
from compiler.passes.probe import make_probe
from compiler.passes.simplify_onnxsim import SIMPLIFY_ONNXSIM, SimplifyOnnxsim
from compiler.passes.values import origins_of

TEXT = """g (float[N,4,6] x) => (float[N,24] y) <float[1] two = {2.0}> {
    [a] r = Relu(x) [b] s = Shape(r) [c] i = Constant<value_ints=[0]>() [d] n = Gather(s, i)
    [e] m = Constant<value_ints=[-1]>() [f] t = Concat<axis=0>(n, m) [g] p = Reshape(r, t) [h] y = Mul(p, two) }"""


def child(code: str) -> SimplifyOnnxsim:
    """The pass with another program in onnxsim's place."""
    start = (
        "import sys, os, time, onnx\n"
        "folder, mode = sys.argv[1:]\n"
        "source, result = folder + '/in.onnx', folder + '/out.onnx'"
    )
    return SimplifyOnnxsim(command=(sys.executable, "-c", f"{start}\n{code}"), timeout_s=20.0)


def edit(code: str) -> SimplifyOnnxsim:
    """The pass with a program that changes the model in one way."""
    return child(f"m = onnx.load(source)\n{code}\nonnx.save(m, result)")


def test_result_is_adopted_with_names_metadata_and_origins() -> None:
    model = parse(TEXT)
    model.graph[0].metadata_props["exporter"] = "block 1"
    probe = make_probe(model)
    result = SIMPLIFY_ONNXSIM(model)
    check_model(model)
    assert result.modified and result.notes == ()
    assert len(model.graph) < 8
    assert model.graph[0].metadata_props["exporter"] == "block 1"
    assert origins_of(model.graph[-1]) == ("h",)
    assert probe.worst(model).worst_abs == 0.0
    assert not SIMPLIFY_ONNXSIM(model).modified


def test_weights_are_put_back_and_were_not_in_the_file() -> None:
    model = parse(
        """g (float[N,64] x, float[64,64] w) => (float[N,64] y)
        { i = Identity(x) a = MatMul(i, w) b = Relu(a) y = Relu(b) }"""
    )
    tensor = with_weight(model, "w", np.eye(64, dtype=np.float32)).graph.initializers["w"].const_value
    SIMPLIFY_ONNXSIM(model)
    assert model.graph.initializers["w"].const_value is tensor
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert "Identity" not in [node.op_type for node in model.graph]


def test_branches_and_functions_survive() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["": 20, "mine": 1]> g (float[3] x, bool c) => (float[3] y) {
        i = Identity(x) f = mine.f(i)
        y = If(c) <then_branch = t () => (float[3] p) { p = Neg(f) },
                   else_branch = e () => (float[3] q) { q = Abs(x) }> }
        <domain: "mine", opset_import: ["": 20]> f (a) => (b) { b = Relu(a) }"""
    )
    probe = make_probe(model)
    SIMPLIFY_ONNXSIM(model)
    check_model(model)
    assert probe.worst(model).worst_abs == 0.0
    assert [key[1] for key in model.functions] == ["f"]
    assert "If" in [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (child("os.abort()"), "crashed with signal 6"),
        (child("sys.exit('no schema')"), r"failed \(1\): no schema"),
        (child("pass"), "no valid model: FileNotFoundError"),
        (child("open(result, 'wb').write(b'not onnx')"), "no valid model"),
        (SimplifyOnnxsim(command=("/nonexistent/program",)), "could not be started"),
        (edit("m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1"), "changed the input"),
        (edit("m.graph.output[0].type.tensor_type.shape.dim[0].dim_param = 'M'"), "changed the output"),
        (edit("m.graph.output[0].name = m.graph.node[-1].output[0] = 'z'"), "changed the output"),
        (edit("m.graph.node[0].op_type = 'Neg'"), "changed an output by up to"),
        (
            edit("m.graph.node[2].attribute[0].ints[0] = 0; m.graph.node[4].attribute[0].ints[0] = 12"),
            "does not run|not valid|changed",
        ),
        (edit("m.opset_import[0].version = 21"), "changed the opset"),
        (edit("m.graph.node[0].op_type = 'NoSuchOperator'"), "no valid model"),
    ],
    ids=lambda case: None if isinstance(case, SimplifyOnnxsim) else case,
)
def test_bad_result_is_left_out_and_named(step: SimplifyOnnxsim, reason: str) -> None:
    model = parse(TEXT)
    result = step(model)
    assert not result.modified
    (note,) = result.notes
    assert note.startswith("onnxsim's result is left out: ")
    assert re.search(reason, note), note
    assert_same(model, TEXT)


def test_frozen_batch_is_seen_although_the_interface_is_unchanged() -> None:
    frozen = edit(
        "t = onnx.helper.make_tensor('t', onnx.TensorProto.INT64, [2], [1, -1])\n"
        "del m.graph.node[1:6]\nm.graph.initializer.append(t)"
    )
    (note,) = frozen(parse(TEXT)).notes
    assert "left out" in note


def test_program_that_hangs_is_killed() -> None:
    step = SimplifyOnnxsim(command=(sys.executable, "-c", "import time; time.sleep(60)"), timeout_s=0.5)
    assert step(parse(TEXT)).notes == ("onnxsim's result is left out: it did not finish within 0.5 s",)


def test_onnxsim_itself_has_the_limit_of_time_and_the_next_model_is_simplified() -> None:
    model = parse(TEXT)
    assert SimplifyOnnxsim(timeout_s=0.01)(model).notes == (
        "onnxsim's result is left out: it did not finish within 0.01 s",
    )
    assert SIMPLIFY_ONNXSIM(model).modified


def test_model_that_cannot_be_compared_is_left_as_it_is() -> None:
    model = parse("g (float[2] x) => (float[2] y) { i = Identity(x) r = RandomNormalLike(i) y = Add(i, r) }")
    result = SIMPLIFY_ONNXSIM(model)
    assert not result.modified
    assert "draws random numbers" in result.notes[0]


def test_child_writes_no_weights(tmp_path: Path) -> None:
    copy = tmp_path / "seen.onnx"
    step = edit(f"onnx.save(m, {str(copy)!r})")
    model = parse("g (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }")
    with_weight(model, "w", np.ones((64, 64), np.float32))
    assert not step(model).modified
    assert not onnx.load(copy).graph.initializer


def heads(opset: int) -> str:
    """Self-attention of two heads, as exporters write it."""
    weights = ", ".join(
        f"float[8,8] w{name} = {{{','.join(str((i * 7 + k) % 5 - 2) for i in range(64))}}}"
        for k, name in enumerate("qkvo")
    )
    lines = " ".join(
        f"{n}p = MatMul(x, w{n}) {n}r = Reshape({n}p, split) {n} = Transpose<perm=[0,2,{order}]>({n}r)"
        for n, order in (("q", "1,3"), ("k", "3,1"), ("v", "1,3"))
    )
    return f"""<ir_version: 10, opset_import: ["": {opset}]> g (float[N,4,8] x) => (float[N,4,8] y)
        <{weights}, int64[4] split = {{0,4,2,4}}, int64[3] join = {{0,4,8}}, float s = {{0.5}}> {{ {lines}
        a = MatMul(q, k) b = Mul(a, s) c = Softmax<axis=-1>(b) d = MatMul(c, v)
        e = Transpose<perm=[0,2,1,3]>(d) f = Reshape(e, join) y = MatMul(f, wo) }}"""


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_operators_of_another_domain_are_not_adopted(opset: int) -> None:
    """onnxsim writes multi-head attention as com.microsoft::Attention, which no target has."""
    model = parse(heads(opset))
    probe = make_probe(model)
    SIMPLIFY_ONNXSIM(model)
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    assert TOLERANCES["fp32"].accepts(probe.worst(model))


def test_a_result_with_foreign_operators_is_made_again_without_optimizations_and_then_left_out() -> None:
    make = "m.graph.node[0].domain = 'com.microsoft'; m.opset_import.add(domain='com.microsoft', version=1)"
    model = parse(TEXT)
    (note,) = edit(make).__call__(model).notes
    assert "other domains than ONNX's: com.microsoft::Relu" in note
    only_first = edit(f"\nif mode == 'all':\n    {make}\nelse:\n    m.graph.node[7].op_type = 'Add'")
    (note,) = only_first(model).notes
    assert "it changed an output" in note  # the second result was looked at


def test_operators_of_another_domain_that_the_model_has_may_stay() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,3] x) => (float[N,3] y)
        { i = Identity(x) j = com.microsoft.Gelu(i) y = Relu(j) }"""
    )
    assert SIMPLIFY_ONNXSIM(model).modified
    assert [node.op_type for node in model.graph] == ["Gelu", "Relu"]
