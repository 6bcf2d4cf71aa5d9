"""LSTM, GRU and RNN against ONNX Runtime, over their attributes, inputs and outputs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from arm_tvm_host import AVX2, NEON, run_on_host
from arm_tvm_models import make, needs_aarch64, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.target import TargetPlan
from compiler.target.capability import find_unsupported
from targets.arm_tvm import TARGET
from targets.arm_tvm.graph.capability import capability_of, find_details

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OUTPUTS = ("Y", "Y_h", "Y_c")


@dataclass(frozen=True)
class Layer:
    """One recurrent node and what is given and read of it."""

    op: str
    direction: str = "forward"
    sizes: tuple[int, int, int, int] = (5, 2, 3, 6)  # steps, batch, inputs, hidden units
    bias: bool = True
    lengths: bool = False
    states: bool = False
    peepholes: bool = False
    reset: int = 0
    clip: float = 0.0
    activations: tuple[str, ...] = ()
    outputs: tuple[bool, ...] = (True, True, True)


def layer_model(layer: Layer, *, opset: int = 17) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The model of one node, and its inputs."""
    (steps, batch, size, hidden), gates = layer.sizes, GATES[layer.op]
    ways = 2 if layer.direction == "bidirectional" else 1
    random = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        # Larger weights make the layer chaotic: differences of rounding then grow from step to step.
        return (random.standard_normal(shape) / max(1.5, np.sqrt(shape[-1]))).astype(np.float32)

    weights = {"W": normal(ways, gates * hidden, size), "R": normal(ways, gates * hidden, hidden)}
    names = ["x", "W", "R"] + [""] * (5 if layer.op == "LSTM" else 3)
    if layer.bias:
        names[3], weights["B"] = "B", normal(ways, 2 * gates * hidden)
    inputs = {"x": normal(steps, batch, size)}
    if layer.lengths:
        names[4], inputs["lengths"] = "lengths", random.integers(1, steps + 1, batch).astype(np.int32)
    if layer.states:
        names[5], inputs["h0"] = "h0", normal(ways, batch, hidden)
        if layer.op == "LSTM":
            names[6], inputs["c0"] = "c0", normal(ways, batch, hidden)
    if layer.peepholes and layer.op == "LSTM":
        names[7], weights["P"] = "P", normal(ways, 3 * hidden)
    while not names[-1]:
        names.pop()
    attributes: dict[str, object] = {"hidden_size": hidden, "direction": layer.direction}
    attributes |= {"clip": layer.clip} if layer.clip else {}
    attributes |= {"linear_before_reset": layer.reset} if layer.op == "GRU" else {}
    attributes |= {"activations": list(layer.activations) * ways} if layer.activations else {}
    if "HardSigmoid" in layer.activations:
        attributes |= {"activation_alpha": [0.25] * ways, "activation_beta": [0.4] * ways}
    read = [name if used else "" for name, used in zip(OUTPUTS, layer.outputs, strict=True)]
    read = read[: 3 if layer.op == "LSTM" else 2]
    kinds = {"lengths": TensorProto.INT32}
    graph = helper.make_graph(
        [helper.make_node(layer.op, names, read, name="layer", **attributes)],
        "recurrent",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), value.shape)
            for name, value in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in read if name],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), inputs


def check(layer: Layer, options: object = NEON) -> None:
    """Compares our code with ONNX Runtime's."""
    model, inputs = layer_model(layer)
    expected, actual = reference(model, inputs), run_on_host(model, inputs, options)
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=3e-6, err_msg=f"{name} of {layer}")


LAYERS = st.builds(
    Layer,
    op=st.sampled_from(list(GATES)),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.sampled_from([1, 3, 4, 6, 8, 13, 20])),
    bias=st.booleans(),
    lengths=st.booleans(),
    states=st.booleans(),
    peepholes=st.booleans(),
    reset=st.integers(0, 1),
    clip=st.sampled_from([0.0, 0.5]),
    outputs=st.sampled_from([(True, True, True), (True, False, False), (False, True, False), (True, True, False)]),
).filter(lambda layer: not layer.clip or (layer.bias and not layer.peepholes))


# an example takes seconds to compile: a few in every run, many where time is given
@settings(max_examples=40 if "FLEETC_SLOW" in os.environ else 3, deadline=None)
@given(layer=LAYERS)
def test_recurrent_layers_equal_onnx_runtime(layer: Layer) -> None:
    check(layer)


@pytest.mark.parametrize("op", list(GATES))
def test_recurrent_layers_equal_onnx_runtime_with_avx2(op: str) -> None:
    check(Layer(op, "bidirectional", sizes=(4, 3, 5, 17), lengths=True, states=True, peepholes=True), AVX2)


def test_long_sequences_equal_onnx_runtime() -> None:
    check(Layer("LSTM", sizes=(100, 1, 8, 64)))


@pytest.mark.parametrize(
    ("op", "names"),
    [
        ("LSTM", ("HardSigmoid", "Tanh", "Relu")),
        ("LSTM", ("Sigmoid", "Softsign", "LeakyRelu")),
        ("GRU", ("HardSigmoid", "Relu")),
        ("RNN", ("Relu",)),
    ],
)
def test_other_activations_equal_onnx_runtime(op: str, names: tuple[str, ...]) -> None:
    check(Layer(op, "bidirectional", clip=1.5, activations=names))


def test_last_outputs_alone_are_computed() -> None:
    check(Layer("LSTM", outputs=(False, False, True)))


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reversed_sequences_equal_onnx_runtime(time: int, batch: int) -> None:
    x = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    lengths = np.random.default_rng(0).integers(1, x.shape[time] + 1, x.shape[batch])
    node = helper.make_node("ReverseSequence", ["x", "lengths"], ["y"], time_axis=time, batch_axis=batch)
    kinds = {"lengths": TensorProto.INT64}
    model = make([node], {"x": x.shape, "lengths": lengths.shape}, {"y": x.shape}, dtypes=kinds)
    inputs = {"x": x, "lengths": lengths}
    np.testing.assert_array_equal(run_on_host(model, inputs)["y"], reference(model, inputs)["y"])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Layer("GRU", activations=("Sigmoid", "Elu")), "activations Elu are not among"),
        (Layer("LSTM", clip=1.0, peepholes=True), "clip with peepholes"),
        (Layer("RNN", clip=1.0, bias=False), "or without a bias"),
    ],
)
def test_what_is_not_computed_is_refused_with_the_node(layer: Layer, reason: str) -> None:
    model, _ = layer_model(layer)
    (refusal,) = find_details(model)
    assert (refusal.node, refusal.op) == ("layer", layer.op)
    assert reason in refusal.reason


def test_batch_first_layout_and_coupled_gates_are_refused_by_the_capability() -> None:
    for name in ("layout", "input_forget"):
        model, _ = layer_model(Layer("LSTM"))
        node = model.graph.node("layer")
        node.attributes[name] = ir.AttrInt64(name, 1)
        (refusal,) = find_unsupported(model, capability_of("generic"))
        assert f"attribute {name}=1" in refusal.reason


@needs_aarch64
def test_layers_run_in_the_emulator(pi5: HardwareProfile, cache_dir: Path, tmp_path: Path) -> None:
    model, inputs = layer_model(Layer("LSTM", "bidirectional", lengths=True, states=True))
    plan = TargetPlan("fp32", validate_options(TARGET.Options, pi5), threads=2, cache_dir=cache_dir)
    runner = TARGET.load(TARGET.build(model, plan, pi5, workdir=tmp_path / "built"))
    actual, expected = runner.run(inputs), reference(model, inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=3e-6)
