"""Recurrent layers written out step by step give what ONNX Runtime gives for the operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import run_unoptimized
from compiler.passes.recurrent_bodies import STEPS_MAX

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
HIDDEN, WIDTH, BATCH = 4, 6, 3
RNG = np.random.default_rng(2)


def random(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def layer(
    op: str,
    *,
    steps: int | str = 5,
    batch: int | str = BATCH,
    opset: int = 17,
    without: str = "",
    unused: tuple[int, ...] = (),
    **attributes: object,
) -> ir.Model:
    """A model of one layer that has every input but those named."""
    directions, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op]
    weights = {
        "W": random(directions, gates * HIDDEN, WIDTH),
        "R": random(directions, gates * HIDDEN, HIDDEN),
        "B": random(directions, 2 * gates * HIDDEN),
        "lengths": np.array([5, 2, 3], np.int32),
        "h0": random(directions, BATCH, HIDDEN),
        "c0": random(directions, BATCH, HIDDEN),
        "P": random(directions, 3 * HIDDEN),
    }
    names = [*weights][: 7 if op == "LSTM" else 5]
    taken = ["" if name in without.split() else name for name in names]
    outputs = ["Y", "Y_h", *(["Y_c"] if op == "LSTM" else [])]
    outputs = ["" if place in unused else name for place, name in enumerate(outputs)]
    node = helper.make_node(op, ["X", *taken], outputs, hidden_size=HIDDEN, name="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [steps, batch, WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name],
        [numpy_helper.from_array(weights[name], name) for name in taken if name],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    infer_shapes(model)
    return model


def lacks(node: ir.Node) -> bool:
    return node.op_type in GATES


def check(model: ir.Model, *, steps: int = 5) -> None:
    """The layer is written out, and gives what it gave."""
    inputs = {"X": random(steps, BATCH, WIDTH)}
    expected = run_unoptimized(model, inputs)
    assert DecomposeOperators(lacks)(model).modified
    assert not any(lacks(node) for node in model.graph)
    check_model(model)
    for name, stats in compare_all(expected, run_unoptimized(model, inputs)).items():
        assert TOLERANCES["fp32"].accepts(stats), (name, stats)


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("without", ["P", "P lengths", "P lengths h0 c0 B", "P h0"])
def test_directions_lengths_and_states(op: str, direction: str, without: str) -> None:
    check(layer(op, direction=direction, without=without))


@pytest.mark.parametrize("opset", [11, 13, 18, 22])
@pytest.mark.parametrize("op", list(GATES))
def test_opsets(op: str, opset: int) -> None:
    check(layer(op, opset=opset, without="P", direction="bidirectional"))


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        (
            "LSTM",
            {"activations": ["HardSigmoid", "Tanh", "Relu"], "activation_alpha": [0.25], "activation_beta": [0.4]},
        ),
        ("LSTM", {"clip": 0.3, "without": "P lengths"}),
        ("LSTM", {"input_forget": 1, "without": "P"}),
        ("LSTM", {"without": ""}),  # peepholes
        (
            "LSTM",
            {
                "direction": "bidirectional",
                "activations": ["Sigmoid", "Tanh", "Tanh", "HardSigmoid", "Elu", "Softsign"],
            },
        ),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 1, "without": "P B"}),
        ("GRU", {"clip": 0.2, "direction": "bidirectional"}),
        ("GRU", {"activations": ["HardSigmoid", "Softplus"]}),
        ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.1]}),
        ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.3], "clip": 0.4}),
        ("RNN", {"direction": "bidirectional", "activations": ["Elu", "LeakyRelu"], "activation_alpha": [0.7, 0.2]}),
    ],
)
def test_attributes(op: str, attributes: dict[str, object]) -> None:
    attributes = {"without": "P", **attributes}
    check(layer(op, **attributes))  # type: ignore[arg-type]


@pytest.mark.parametrize("unused", [(0,), (0, 2), (1,), (2,)])
def test_outputs_that_nobody_reads(unused: tuple[int, ...]) -> None:
    check(layer("LSTM", without="P", unused=unused))


def test_batch_may_stay_open() -> None:
    check(layer("LSTM", without="P lengths h0 c0", batch="batch"))


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LSTM", {"steps": "time"}),
        ("RNN", {"steps": STEPS_MAX + 1}),
        ("RNN", {"activations": ["Affine"]}),
        ("LSTM", {"clip": 0.3, "without": ""}),
        ("GRU", {"clip": 0.3, "without": "P B"}),
        ("LSTM", {"layout": 1, "without": "P lengths h0 c0"}),
    ],
)
def test_what_cannot_be_written_out_stays(op: str, attributes: dict[str, object]) -> None:
    attributes = {"without": "P", **attributes}
    model = layer(op, **attributes)  # type: ignore[arg-type]
    assert not DecomposeOperators(lacks)(model).modified
