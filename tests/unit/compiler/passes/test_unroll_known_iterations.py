"""Loops that become their iterations: the same outputs in ONNX Runtime, and what is left alone and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.model.graph import check_model
from compiler.model.reference import Unoptimized
from compiler.passes import unroll_loops
from compiler.passes.unroll_loops import UnrollLoops

STEP = UnrollLoops()
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
INPUTS = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "s": np.ones(3, np.float32)}


def value(name: str, kind: int = FLOAT, shape: Sequence[int] | None = (3,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"{op}_{outputs.split()[0]}", **attributes)


def model(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], opset: int = 17) -> ir.Model:
    constants = {"three": np.array(3), "yes": np.array(True), "zero": np.array(0), "two": np.array(2.0, np.float32)}
    graph = helper.make_graph(
        nodes,
        "loops",
        [value("x", shape=(4, 3)), value("s"), value("n", INT64, ())],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def body(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
    constant = numpy_helper.from_array(np.array(2), "limit")
    return helper.make_graph(
        nodes, "body", [value("i", INT64, ()), value("c", BOOL, ()), value("a")], outputs, [constant]
    )


COUNTED = body(
    [
        node("Gather", "x i", "row", axis=0),
        node("Mul", "a two", "twice"),
        node("Add", "twice row", "b"),
        node("Identity", "c", "d"),
    ],
    [value("d", BOOL, ()), value("b"), value("row")],
)
LIMITED = body(
    [node("Add", "a s", "b"), node("Less", "i limit", "d")],
    [value("d", BOOL, ()), value("b")],
)
ENDLESS = body(
    [node("Add", "a s", "b"), node("ReduceSum", "b", "sum", keepdims=0), node("Less", "sum two", "d")],
    [value("d", BOOL, ()), value("b")],
)
SCANNED = helper.make_graph(
    [node("Add", "a r", "b"), node("Mul", "b two", "y")],
    "body",
    [value("a"), value("r")],
    [value("b"), value("y")],
)


def unrolled(original: ir.Model) -> ir.Model:
    changed = original.clone()
    result = STEP(changed)
    assert result.modified, result.notes
    assert not STEP(changed).modified
    assert not {"Loop", "Scan"} & {node.op_type for node in changed.graph}
    check_model(changed)
    return changed


def check(original: ir.Model) -> ir.Model:
    """Unrolls the loops of a model and compares its outputs with the original's."""
    changed = unrolled(original)
    inputs = {**INPUTS, "n": np.array(2)}
    expected, actual = Unoptimized(original).run(inputs), Unoptimized(changed).run(inputs)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)
    return changed


@pytest.mark.parametrize("opset", [11, 17])
def test_loop_with_constant_trip_count_collects_and_carries(opset: int) -> None:
    changed = check(
        model([node("Loop", "three yes s", "y rows", body=COUNTED)], [value("y"), value("rows", shape=(3, 3))], opset)
    )
    assert all(
        other.metadata_props["fleetc.origin"].startswith("Loop_y") for other in changed.graph if other.op_type == "Mul"
    )


def test_loop_ends_by_a_condition_on_its_counter() -> None:
    changed = check(model([node("Loop", "_ yes s", "y", body=LIMITED)], [value("y")]))
    assert sum(other.op_type == "Add" for other in changed.graph) == 3


def test_loop_without_iterations_gives_its_first_states() -> None:
    check(model([node("Loop", "zero yes s", "y", body=LIMITED)], [value("y")]))


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_over_a_fixed_length(backwards: int) -> None:
    ways = {"scan_input_directions": [backwards], "scan_output_directions": [backwards], "scan_output_axes": [1]}
    scan = node("Scan", "s x", "y ys", body=SCANNED, num_scan_inputs=1, **ways)
    check(model([scan], [value("y"), value("ys", shape=(3, 4))]))


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (node("Loop", "n yes s", "y", body=LIMITED), "its number of trips is not constant"),
        (node("Loop", "_ yes s", "y", body=ENDLESS), "its body decides when it ends"),
    ],
)
def test_loops_that_depend_on_data_are_left_alone(loop: onnx.NodeProto, reason: str) -> None:
    original = model([loop], [value("y")])
    before = str(original)
    result = STEP(original)
    assert not result.modified
    assert reason in result.notes[0]
    assert str(original) == before


def test_a_loop_of_too_many_nodes_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unroll_loops, "MAX_NODES", 5)
    original = model([node("Loop", "three yes s", "y rows", body=COUNTED)], [value("y"), value("rows", shape=(3, 3))])
    result = STEP(original)
    assert not result.modified
    assert "more than 5 nodes" in result.notes[0]
