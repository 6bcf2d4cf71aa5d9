"""Whose fault it is that a model does not run: the model's, the machine's, or ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import psutil
import pytest

from compiler.errors import ToolchainFailed, UnsupportedModel
from compiler.model import reference
from compiler.model.graph import add_constant
from compiler.model.reference import Optimized, Unoptimized, may_optimize
from compiler.model.save import save_model
from compiler.passes.probe import make_probe

HEADER = '<ir_version: 10, opset_import: ["": 20, "own": 1]> g '
RELU = HEADER + "(float[2,3] x) => (float[2,3] y) { y = Relu(x) }"
FLOATS = np.ones((2, 3), np.float32)
NO_MACHINE_HAS_BYTES = 1 << 54


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        (HEADER + "(float[2,3] x) => (float[2,3] y) { y = own.Foo(x) }", {"x": FLOATS}),
        (HEADER + "(complex64[2] x) => (complex64[2] y) { y = Identity(x) }", {"x": np.ones(2, np.complex64)}),
        (HEADER + "(float[2,3] x) => (seq(float[2,3]) y) { y = SequenceConstruct(x) }", {"x": FLOATS}),
        (HEADER + "(string[1] x) => (string[1] y) { y = Identity(x) }", {"x": np.array(["a"], object)}),
        (
            HEADER + "(float[2,3] x, int64[1] i) => (float[N] y) { y = Reshape(x, i) }",
            {"x": FLOATS, "i": np.array([7])},
        ),
        (RELU, {"x": FLOATS[:1]}),
        (RELU, {"x": FLOATS.astype(np.float64)}),
    ],
    ids=["operator", "type", "sequence", "text", "reshape", "shape", "dtype"],
)
def test_what_onnx_runtime_refuses_is_the_models_fault(text: str, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(UnsupportedModel, match="ONNX Runtime does not run the model"):
        Unoptimized(ir.from_onnx_text(text)).run(inputs)


def test_memory_that_is_not_there_is_the_machines_lack_and_no_reason_to_go_on_without_a_probe() -> None:
    text = HEADER + "(float[1] x, int64[2] sizes) => (float[N,M] y) { y = Expand(x, sizes) }"
    side = int((NO_MACHINE_HAS_BYTES // 4) ** 0.5)
    inputs = {"x": FLOATS[0, :1], "sizes": np.array([side, side])}
    with pytest.raises(ToolchainFailed, match="memory"):
        make_probe(ir.from_onnx_text(text), inputs)


def test_a_bug_of_ours_stays_one_and_is_no_reason_to_go_on_without_a_probe() -> None:
    not_an_array = {"x": [[1.0, 2.0, 3.0]] * 2}
    with pytest.raises(AttributeError):
        Unoptimized(ir.from_onnx_text(RELU)).run(not_an_array)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        make_probe(ir.from_onnx_text(RELU), not_an_array)  # type: ignore[arg-type]


def test_a_model_that_cannot_be_run_has_a_probe_that_says_why() -> None:
    probe = make_probe(ir.from_onnx_text(HEADER + "(float[2,3] x) => (float[2,3] y) { y = own.Foo(x) }"))
    assert probe.expected is None and "own:Foo" in probe.why


def test_optimized_session_gives_the_references_results_but_for_last_places() -> None:
    model = ir.from_onnx_text(HEADER + "(float[2,3] x) => (float[2,3] y) { t = Mul(x, x) y = Softmax(t) }")
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3) / 7}
    np.testing.assert_allclose(Optimized(model).run(inputs)["y"], Unoptimized(model).run(inputs)["y"], rtol=1e-6)


def test_a_weight_that_is_turned_is_turned_once_and_read_as_it_is_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_onnx_text(
        HEADER + "(int64[2] ids, float[64] scale, float[64,64] w) => (float[2,64] y, float[64,2] z, float[64,64] own) {"
        " x = Gather(w, ids) p = Mul(x, scale) t = Transpose<perm=[1,0]>(w) y = MatMul(p, t) z = Transpose(p)"
        " own = Transpose<perm=[1,0]>(w) }"
    )
    table = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(table, name="w")
    model.graph.register_initializer(weight)
    inputs = {"ids": np.array([3, 1]), "scale": np.ones(64, np.float32)}
    once = Unoptimized(model).run(inputs)
    monkeypatch.setattr("compiler.model.reference.TURNED_BYTES", 0)
    each = Unoptimized(model)
    assert "t" not in {value.name for value in each._session.get_inputs()}
    for name, array in each.run(inputs).items():
        np.testing.assert_array_equal(once[name], array)
    np.testing.assert_array_equal(once["own"], table.T)


@pytest.mark.parametrize(
    ("body", "may"),
    [
        ("float[2] x) => (float[2] y) { y = Relu(x) }", True),
        ("float16[2] x) => (float16[2] y) { y = Relu(x) }", True),
        ("bfloat16[2] x) => (bfloat16[2] y) { y = Relu(x) }", False),
        (
            "float[2] x, float s) => (float[2] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
            False,
        ),
    ],
    ids=["float32", "float16", "bfloat16", "quantized"],
)
def test_only_models_of_floats_are_optimized(body: str, may: bool) -> None:
    model = ir.from_onnx_text(f"{HEADER}({body}")
    assert may_optimize(model) is may


def test_what_a_large_model_takes_for_a_run_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEADER + "(float[1] x, int64[2] sizes) => (float y) { z = Expand(x, sizes)  y = ReduceMax<keepdims=0>(z) }"
    inputs = {"x": FLOATS[0, :1], "sizes": np.array([8192, 8192])}

    def held_mib() -> float:
        session, before = Unoptimized(ir.from_onnx_text(text)), rss_bytes()
        assert session.run(inputs)["y"] == 1
        return (rss_bytes() - before) / 2**20

    assert held_mib() > 200, "a session keeps it for the next run"
    monkeypatch.setattr(reference, "LARGE_BYTES", -1)
    assert held_mib() < 50


def rss_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("count", [16384, 16383])
@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.UINT4])
def test_weights_of_4_bits_are_read_from_their_file_and_not_unpacked(
    tmp_path: Path, dtype: ir.DataType, count: int
) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float s) => (float[n] y) { y = DequantizeLinear(w, s) }'
    model = ir.from_onnx_text(text)
    low = -8 if dtype == ir.DataType.INT4 else 0
    wanted = np.random.default_rng(0).integers(low, low + 16, count)
    weight = ir.tensor(wanted.astype(dtype.numpy()), dtype=dtype, name="w")
    model.graph[0].replace_input_with(0, add_constant(model.graph, "w", weight))
    save_model(model, tmp_path / "m.onnx", external_above_bytes=0)
    read = ir.load(tmp_path / "m.onnx")
    outputs = Unoptimized(read).run({"s": np.float32(0.5).reshape(())})
    assert outputs["y"].tolist() == (wanted * 0.5).tolist()
    assert read.graph.initializers["w"].const_value.raw is None
