"""A declared output shape that inference or a run contradicts is corrected with a note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.fleet import Range
from compiler.model.frontend import bind_shapes, correct_outputs, read_model
from compiler.model.graph import check_model


def saved(folder: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize(
    ("declared", "body", "actual"),
    [
        ("[1,n]", "y = Unsqueeze(x, ax)", "[1,n,4]"),
        ("[n,5]", "y = Relu(x)", "[n,4]"),
        ("[7,4]", "y = Relu(z)", "[3,4]"),
        ("[4]", "y = Relu(x)", "[n,4]"),
    ],
)
def test_inference_corrects_a_declared_output(tmp_path: Path, declared: str, body: str, actual: str) -> None:
    path = saved(
        tmp_path, f"{HEAD} g (float[n,4] x, float[3,4] z) => (float{declared} y) <int64[1] ax = {{0}}> {{ {body} }}"
    )
    imported = read_model(path)
    assert str(imported.model.graph.outputs[0].shape) == actual
    assert imported.notes[-1] == f"output 'y' is declared as {declared} and is {actual}; the declaration was corrected"
    check_model(imported.model)
    bound = bind_shapes(imported.model, {"batch": Range(2, 2, 2)}).model
    assert bound.graph.outputs[0].shape.is_static()


def test_a_right_declaration_is_left_alone(tmp_path: Path) -> None:
    imported = read_model(saved(tmp_path, f"{HEAD} g (float[n,4] x) => (float[m,4] y) {{ y = Relu(x) }}"))
    assert imported.notes == () or not any("declared" in note for note in imported.notes)


def test_a_run_corrects_what_inference_cannot_tell() -> None:
    text = f"{HEAD} g (float[2,4] x, int64[3] s) => (float[1,8] y) {{ y = Expand(x, s) }}"
    model = ir.from_onnx_text(text)
    (note,) = correct_outputs(model, {"y": np.zeros((3, 2, 4), np.float32)})
    assert "output 'y' is declared as [1,8] and is [3,2,4]" in note
    assert str(model.graph.outputs[0].shape) == "[3,2,4]"
    assert correct_outputs(model, {"y": np.zeros((3, 2, 4), np.float32)}) == ()


def test_a_run_at_one_size_of_a_range_or_of_data_does_not_fix_the_others() -> None:
    ranged = ir.from_onnx_text(f"{HEAD} g (float[N,4] x) => (float[5,4] y) {{ y = Relu(x) }}")
    correct_outputs(ranged, {"y": np.zeros((2, 4), np.float32)})
    first, second = ranged.graph.outputs[0].shape
    assert not isinstance(first, int) and second == 4
    data = ir.from_onnx_text(f"{HEAD} g (float[4] x) => (int64[1,9] y) {{ y = NonZero(x) }}")
    correct_outputs(data, {"y": np.zeros((1, 3), np.int64)})
    first, second = data.graph.outputs[0].shape
    assert first == 1 and not isinstance(second, int)
