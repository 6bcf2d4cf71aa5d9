"""The old Softmax family means the same afterwards, whichever opset reads it."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from pass_cases import apply

from compiler.passes.flatten_softmax import FLATTEN_SOFTMAX
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import make_probe, run_unoptimized

CASES = [
    (operator, shape, axis)
    for operator in ("Softmax", "LogSoftmax", "Hardmax")
    for shape in ("2,3,4", "N,3,4", "N,3,H,4", "2,3", "2,3,1,1", "3,4,5,2")
    for axis in (None, 0, 1, 2, -1, -2)
    if axis is None or -shape.count(",") - 1 <= axis <= shape.count(",")
]


def old(operator: str, shape: str, axis: int | None) -> str:
    attribute = "" if axis is None else f"<axis={axis}>"
    return f"""<ir_version: 6, opset_import: ["": 11]> g (float[{shape}] x) => (float[{shape}] y)
        {{ a = Relu(x) [it] s = {operator}{attribute}(a) y = Neg(s) }}"""


@pytest.mark.parametrize(("operator", "shape", "axis"), CASES)
def test_results_stay_and_do_not_depend_on_the_opset(operator: str, shape: str, axis: int | None) -> None:
    model, _ = apply(FLATTEN_SOFTMAX, old(operator, shape, axis))
    reference = ir.from_onnx_text(old(operator, shape, axis))
    probe = make_probe(reference)
    model.graph.opset_imports[""] = 13  # as a toolchain that takes the old operator for the new one
    for node in model.graph:
        if node.op_type == operator:
            node.attributes.setdefault("axis", ir.AttrInt64("axis", 1))
    outputs = run_unoptimized(model, probe.inputs)
    assert abs(outputs["y"] - probe.expected["y"]).max() < 1e-6


def test_the_output_of_the_model_keeps_its_name() -> None:
    text = """<ir_version: 6, opset_import: ["": 12]> g (float[N,3,4] x) => (float[N,3,4] y)
        { [it] y = Softmax<axis=1>(x) }"""
    model, result = apply(FLATTEN_SOFTMAX, text)
    assert result.modified
    assert [node.op_type for node in model.graph] == ["Flatten", "Softmax", "Reshape"]
    assert [node.metadata_props.get("fleetc.origin", "it") for node in model.graph] == ["it", "it", "it"]
    assert model.graph[1].name == "it"


@pytest.mark.parametrize("opset", [13, 18])
def test_the_new_operator_is_left_alone(opset: int) -> None:
    model = ir.from_onnx_text(old("Softmax", "2,3,4", 1).replace("11", str(opset)))
    infer_shapes(model)
    assert not FLATTEN_SOFTMAX(model).modified
