"""Sizes from the fleet file reach every shape, and what does not fit is said all at once."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from compiler.errors import FleetError, UnsupportedModel, UsageError
from compiler.fleet import Range
from compiler.model.frontend import bind_shapes, describe_inputs, describe_outputs, extract_prefix, free_dims
from compiler.model.graph import check_model

ONE = Range(1, 1, 1)
FREE = Range(1, 4, 8)


def model(inputs: str, outputs: str = "float[A,B] y", body: str = "y = Flatten (x)") -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}')


def shape(value: ir.Value) -> list[object]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def test_one_size_makes_the_dimension_static_everywhere() -> None:
    bound = bind_shapes(model("float[N,3,H,8] x"), {"batch": Range(2, 2, 2), "H": Range(4, 4, 4)}).model
    assert shape(bound.graph.inputs[0]) == [2, 3, 4, 8]
    assert shape(bound.graph.outputs[0]) == [2, 96]
    check_model(bound)


def test_a_range_stays_symbolic_under_a_stable_name() -> None:
    bound = bind_shapes(model("float[N,3,H,8] x"), {"batch": FREE, "H": FREE}).model
    assert describe_inputs(bound)[0].shape == ("batch", 3, "H", 8)
    assert describe_outputs(bound)[0].shape[0] == "batch"


def test_the_given_model_is_left_as_it_is() -> None:
    given = model("float[N,3] x")
    bind_shapes(given, {"batch": ONE})
    assert shape(given.graph.inputs[0]) == ["N", 3]


def test_unnamed_dimensions_go_by_input_and_axis() -> None:
    given = model("float[?,3,?] x")
    assert free_dims(given) == ("x.0", "x.2")
    assert shape(bind_shapes(given, {"batch": ONE, "x.2": Range(5, 5, 5)}).model.graph.inputs[0]) == [1, 3, 5]


def test_the_batch_is_the_same_for_all_inputs_and_a_note_says_so_when_their_names_differ() -> None:
    bound = bind_shapes(model("float[N,4] x, float[M,4] z", body="s = Add (x, z) y = Flatten (s)"), {"batch": FREE})
    assert [spec.shape[0] for spec in describe_inputs(bound.model)] == ["batch", "batch"]
    assert "M, N" in bound.notes[0]


def test_a_first_dimension_with_a_range_of_its_own_is_not_the_batch() -> None:
    given = model("float[N,4] x, float[rows,4] z", "float[rows,N] y", "t = Transpose (x) y = MatMul (z, t)")
    bound = bind_shapes(given, {"batch": FREE, "rows": Range(3, 3, 3)})
    assert [spec.shape[0] for spec in describe_inputs(bound.model)] == ["batch", 3]
    assert bound.notes == ()


def test_a_name_that_is_also_a_length_is_not_the_batch() -> None:
    given = model("float[N,S] x, float[S] z", body="s = Add (x, z) y = Flatten (s)")
    bound = bind_shapes(given, {"batch": FREE, "S": Range(7, 7, 7)}).model
    assert [spec.shape for spec in describe_inputs(bound)] == [("batch", 7), (7,)]


def test_every_unbound_dimension_is_listed_with_a_snippet() -> None:
    with pytest.raises(FleetError) as caught:
        bind_shapes(model("float[N,3,H,W] x"), {"batch": ONE}, where="fleet.yaml:4 devices.kiosk")
    assert str(caught.value).startswith("fleet.yaml:4 devices.kiosk: dimensions 'H' (axis 2 of 'x'), 'W'")
    assert '    dims:\n      "H": 1\n      "W": 1' in caught.value.remedy


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(FleetError, match=r"no dimension 'hight'\s+Did you mean 'height'"):
        bind_shapes(model("float[N,height] x"), {"batch": ONE, "height": ONE, "hight": ONE})


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(FleetError, match=r"3 problems[\s\S]*'H'[\s\S]*1 <= min[\s\S]*'K'"):
        bind_shapes(model("float[N,H] x"), {"batch": _Zero(), "K": ONE})


class _Zero:
    """A size that the fleet file itself would have refused."""

    min = opt = max = 0


def test_a_batch_that_the_model_contradicts_is_refused() -> None:
    with pytest.raises(FleetError, match=r"batch 2 is asked for.*fixed in the model: 8 \('x'\)\s+Write `batch: 8`"):
        bind_shapes(model("float[8,3] x"), {"batch": Range(2, 2, 2)})
    with pytest.raises(FleetError, match=r"batch 1\.\.8"):
        bind_shapes(model("float[8,3] x"), {"batch": FREE})


def test_the_batch_the_model_is_fixed_at_is_accepted() -> None:
    assert shape(bind_shapes(model("float[8,3] x"), {"batch": Range(8, 8, 8)}).model.graph.inputs[0]) == [8, 3]


def test_a_fixed_dimension_named_by_its_place_must_agree() -> None:
    bind_shapes(model("float[N,3] x"), {"batch": ONE, "x.1": Range(3, 3, 3)})
    with pytest.raises(FleetError, match=r"'x\.1' is fixed at 3"):
        bind_shapes(model("float[N,3] x"), {"batch": ONE, "x.1": Range(4, 4, 4)})


def test_an_input_of_unknown_rank_is_refused() -> None:
    with pytest.raises(FleetError, match="'x' does not even say how many dimensions"):
        bind_shapes(model("float x0, float[] x", body="y = Flatten (x)"), {"batch": ONE})


def test_a_size_baked_into_the_model_is_named_as_such() -> None:
    given = model("float[N,4] x", body="t = Constant <value = int64[2] {4, 1}> () y = Reshape (x, t)")
    with pytest.raises(FleetError, match=r"batch: 3\.\.3 the model's shapes contradict.*Reshape"):
        bind_shapes(given, {"batch": Range(3, 3, 3)})
    added = model("float[N,4] x", body="t = Constant <value = float[2,1] {1, 4}> () s = Add (x, t) y = Flatten (s)")
    with pytest.raises(FleetError, match="contradict each other"):
        bind_shapes(added, {"batch": Range(3, 3, 3)})


def test_shapes_inside_subgraphs_are_bound() -> None:
    body = """y = If (c) <then_branch = t () => (float[N,4] a) { a = Neg (x) },
                           else_branch = e () => (float[N,4] b) { b = Abs (x) }>"""
    bound = bind_shapes(model("float[N,4] x, bool c", "float[N,4] y", body), {"batch": Range(3, 3, 3)}).model
    assert {tuple(shape(node.outputs[0])) for node in bound.graph.all_nodes()} == {(3, 4)}


CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}>
{ a = Add (x, w) b = Relu (a)
  d = If (c) <then_branch = t () => (float[2] p) { p = Neg (b) }, else_branch = e () => (float[2] q) { q = Abs (v) }>
  y = Mul (d, v) }"""


def inferred(text: str) -> ir.Model:
    return bind_shapes(ir.from_onnx_text(text), {}).model


def test_a_prefix_ends_in_the_value_and_drops_what_it_does_not_need() -> None:
    whole = inferred(CHAIN)
    cut = extract_prefix(whole, ["a"])
    assert [node.op_type for node in cut.graph] == ["Add"]
    assert list(cut.graph.initializers) == ["w"]
    assert cut.graph.initializers["w"].const_value is whole.graph.initializers["w"].const_value
    assert [spec.name for spec in describe_inputs(cut)] == ["x", "c"]
    check_model(cut)
    assert len(list(whole.graph)) == 4


def test_a_prefix_keeps_what_subgraphs_take_from_outside() -> None:
    cut = extract_prefix(inferred(CHAIN), ["d", "a"])
    assert [node.op_type for node in cut.graph] == ["Add", "Relu", "If"]
    assert set(cut.graph.initializers) == {"w", "v"}
    assert [value.name for value in cut.graph.outputs] == ["d", "a"]
    check_model(cut)


def test_a_prefix_of_an_unknown_value_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no value named 'yy'\s+Nearest: y"):
        extract_prefix(inferred(CHAIN), ["yy"])


def test_a_prefix_that_ends_in_a_value_without_type_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="type of value 'a'"):
        extract_prefix(ir.from_onnx_text(CHAIN), ["a"])


def test_describing_a_sequence_input_is_refused() -> None:
    given = model("seq(float[2]) s", "int64 y", "y = SequenceLength (s)")
    with pytest.raises(UnsupportedModel, match="'s' is no tensor"):
        describe_inputs(given)


def test_the_whole_of_onnx_text_still_prints_after_binding() -> None:
    bound = bind_shapes(model("float[N,3] x"), {"batch": FREE}).model
    assert "batch" in onnx.printer.to_text(ir.to_proto(bound))
