"""A part of a model between two values: what it takes, what it computes, and what cannot be cut."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import CompilerError, UsageError
from compiler.fleet.cut import Cut, parse_cuts
from compiler.model.frontend import cut_model
from compiler.model.graph import check_model
from compiler.model.reference import Unoptimized

TEXT = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
g (string[N] words, float[N,4] extra) => (int64[N] label, string[N] said) <float[4,4] w, float[4] b>
{
  ids = local.Tokenize (words)
  h = MatMul (extra, w)
  z = Add (h, b)
  p = Softmax <axis = 1> (z)
  y = Mul (p, extra)
  label = ArgMax <axis = 1, keepdims = 0> (y)
  said = local.Decode (label)
}"""


@pytest.fixture
def model() -> ir.Model:
    made = ir.from_onnx_text(TEXT.replace(" <float[4,4] w, float[4] b>", ""))
    rng = np.random.default_rng(0)
    for name, shape in {"w": (4, 4), "b": (4,)}.items():
        value = next(value for node in made.graph for value in node.inputs if value and value.name == name)
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        made.graph.register_initializer(value)
    return made


def test_what_stands_before_and_behind_stays_outside(model: ir.Model) -> None:
    part = cut_model(model, Cut(inputs=("h",), outputs=("z", "p")))
    check_model(part.model)
    assert [value.name for value in part.model.graph.inputs] == ["h"]
    assert [(value.name, str(value.shape)) for value in part.model.graph.outputs] == [("z", "[N,4]"), ("p", "[N,4]")]
    assert [node.op_type for node in part.model.graph] == ["Add", "Softmax"]
    assert list(part.model.graph.initializers) == ["b"]
    h = np.ones((2, 4), np.float32)
    outputs = Unoptimized(part.model).run({"h": h})
    b = model.graph.initializers["b"].const_value
    assert b is not None
    np.testing.assert_allclose(outputs["z"], h + b.numpy())
    assert len(model.graph) == 7, "the model itself is left as it is"
    assert part.notes[0] == "the model was cut between h and z, p: 7 nodes became 2"


def test_an_empty_side_is_the_models_own(model: ir.Model) -> None:
    part = cut_model(model, Cut(outputs=("label",)))
    assert [value.name for value in part.model.graph.inputs] == ["extra"]
    assert part.notes[1] == "inputs left outside: words"


def test_an_input_of_the_model_may_be_named_beside_a_value(model: ir.Model) -> None:
    part = cut_model(model, Cut(inputs=("z", "extra"), outputs=("y",)))
    assert [value.name for value in part.model.graph.inputs] == ["z", "extra"]


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (Cut(inputs=("hh",), outputs=("pp",)), ("no value 'hh'", "Nearest: h", "no value 'pp'", "Nearest: p")),
        (Cut(inputs=("w",), outputs=("p",)), ("'w' is a weight",)),
        (Cut(inputs=("ids",), outputs=("p",)), ("type and shape of value 'ids' are not known", "other domains")),
        (Cut(inputs=("z",), outputs=("y",)), ("also reads the model's input 'extra'",)),
        (Cut(inputs=("label",), outputs=("p",)), ("no output of the part depends on 'label'",)),
    ],
)
def test_what_cannot_be_cut_is_said_with_the_way_out(model: ir.Model, cut: Cut, words: tuple[str, ...]) -> None:
    with pytest.raises(CompilerError) as error:
        cut_model(model, cut, where="fleet.yaml cut")
    for word in words:
        assert word in str(error.value)


def test_the_command_line_names_pairs() -> None:
    assert parse_cuts(()) is None
    assert parse_cuts(("a,c", "b,c")) == Cut(inputs=("a", "b"), outputs=("c",))
    assert parse_cuts((",c",)) == Cut(outputs=("c",))


@pytest.mark.parametrize("text", ["a", "a,b,c", ","])
def test_a_text_that_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="INPUT,OUTPUT"):
        parse_cuts((text,))
