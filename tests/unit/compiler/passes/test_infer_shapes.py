from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import apply, parse, with_weight

from compiler.passes.infer_shapes import INFER_SHAPES


def test_every_value_gets_type_and_shape_in_branches_too() -> None:
    model, _ = apply(
        INFER_SHAPES,
        """g (float[N,3] x, bool c) => (float[N,3] y) { a = Relu(x)
        y = If(c) <then_branch = t () => (float[N,3] p) { i = Neg(a) p = Abs(i) },
                   else_branch = e () => (float[N,3] q) { q = Abs(x) }> }""",
    )
    values = {value.name: value for node in model.graph.all_nodes() for value in node.outputs}
    assert [str(values[name].shape) for name in "ai"] == ["[N,3]", "[N,3]"]
    assert values["i"].dtype == ir.DataType.FLOAT


def test_a_declared_size_is_not_replaced() -> None:
    model = parse("g (float[N,3] x) => (float[M,3] y) { y = Relu(x) }")
    INFER_SHAPES(model)
    assert str(model.graph.outputs[0].shape) == "[M,3]"


def test_first_run_says_modified_and_the_second_does_not() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Abs(a) }")
    assert INFER_SHAPES(model).modified
    assert not INFER_SHAPES(model).modified


def test_what_cannot_be_known_is_noted() -> None:
    model = parse("g (float[N,3] x, int64[K] s) => (float[] y) { a = Expand(x, s) y = ReduceSum<keepdims=0>(a) }")
    (note,) = INFER_SHAPES(model).notes
    assert "'a'" in note


def test_weights_are_not_copied() -> None:
    model = parse("g (float[N,2000] x, float[2000,2000] w) => (float[N,2000] y) { a = MatMul(x, w) y = Relu(a) }")
    tensor = with_weight(model, "w", np.zeros((2000, 2000), np.float32)).graph.initializers["w"].const_value
    INFER_SHAPES(model)
    assert model.graph.initializers["w"].const_value is tensor
    assert str(model.graph[0].outputs[0].shape) == "[N,2000]"


@pytest.mark.parametrize(
    "node",
    [
        "y, h, c = LSTM<hidden_size=2>(x, w, r)",
        "y, h = GRU<hidden_size=2>(x, w, r)",
        "y, h = Dropout(x)",
        "y, h, c = LayerNormalization(x, s)",
    ],
)
def test_optional_outputs_spelled_as_empty_names_at_the_end_are_no_outputs(node: str) -> None:
    """They are not written to the protobuf that inference reads, so it sees fewer outputs than the node has."""
    gates = 8 if "LSTM" in node else 6
    inputs = f"float[4,N,3] x, float[1,{gates},3] w, float[1,{gates},2] r, float[3] s"
    model = parse(f"g ({inputs}) => (float[A,B,C] z) {{ {node} z = Relu(y) }}".replace("[A,B,C]", "[]"))
    for value in model.graph[0].outputs[1:]:
        value.name = ""
    INFER_SHAPES(model)
    assert model.graph[0].outputs[0].dtype == ir.DataType.FLOAT
    assert model.graph[0].outputs[0].shape is not None
