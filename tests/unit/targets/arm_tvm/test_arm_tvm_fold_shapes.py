"""Sizes that a model computes of its own shapes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from arm_tvm_models import reference
from onnx import TensorProto, helper, numpy_helper

from compiler.model.graph import check_model
from targets.arm_tvm.graph.fold_shapes import FOLD_SHAPES


def _reshapes(count: int) -> ir.Model:
    """Reshapes by shapes that are computed of each other's results, with no shape in the graph."""
    nodes, value = [], "x"
    for index in range(count):
        nodes += [
            helper.make_node("Shape", [value], [f"s{index}"], name=f"shape{index}"),
            # Reversed by a Gather, so that shape inference cannot follow it.
            helper.make_node("Gather", [f"s{index}", "back"], [f"g{index}"], name=f"gather{index}"),
            helper.make_node("Reshape", [value, f"g{index}"], [f"r{index}"], name=f"reshape{index}"),
            helper.make_node("Relu", [f"r{index}"], [f"y{index}"], name=f"relu{index}"),
        ]
        value = f"y{index}"
    graph = helper.make_graph(
        nodes,
        "reshapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, (2, 3) if count % 2 == 0 else (3, 2))],
        [numpy_helper.from_array(np.array([1, 0]), "back")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def test_chains_of_computed_shapes_become_constants() -> None:
    model, inputs = _reshapes(4), {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    expected = reference(model, inputs)
    assert FOLD_SHAPES(model).modified
    assert {node.op_type for node in model.graph} == {"Reshape", "Relu"}
    check_model(model)
    assert not FOLD_SHAPES(model).modified
    for name, value in reference(model, inputs).items():
        np.testing.assert_array_equal(value, expected[name])
